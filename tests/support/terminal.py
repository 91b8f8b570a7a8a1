"""A program on a terminal of its own: what it shows is read, and keys are pressed, Ctrl-C among them."""

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: The slave end becomes the controlling terminal, so that Ctrl-C is a signal.
_PROGRAM = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from launch.cli import main; main()"
CTRL_C = "\x03"


class OnTerminal:
    """`shown` is everything that the program has written so far."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self.shown = ""
        self._master = master
        self._seen = 0

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait_for(self, text: str, timeout_s: float = 120.0) -> str:
        """Until `text` is shown, after what was waited for before; everything up to it."""
        until = time.monotonic() + timeout_s
        while (at := self.shown.find(text, self._seen)) < 0:
            assert time.monotonic() < until, f"no {text!r} in {self.shown[self._seen :]!r}"
            self._read(0.1)
        start, self._seen = self._seen, at + len(text)
        return self.shown[start : self._seen]

    def end(self, timeout_s: float = 30.0) -> int:
        """The exit code."""
        until = time.monotonic() + timeout_s
        while self.process.poll() is None and time.monotonic() < until:
            self._read(0.1)
        return self.process.wait(timeout=60.0)

    def _read(self, timeout_s: float) -> None:
        if select.select([self._master], [], [], timeout_s)[0]:
            try:
                self.shown += os.read(self._master, 65536).decode(errors="replace").replace("\r\n", "\n")
            except OSError:
                time.sleep(timeout_s)  # nobody holds the other end any more


@contextmanager
def on_terminal(*arguments: str | Path, kind: str = "dumb") -> Iterator[OnTerminal]:
    """Start `sidestage ARGUMENTS` on a new terminal of that kind; it is killed at the end."""
    master, slave = os.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM, *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "TERM": kind, "NO_COLOR": "1"},
        )
        os.close(slave)
        with process:
            try:
                yield OnTerminal(process, master)
            finally:
                process.kill()
    finally:
        os.close(master)
