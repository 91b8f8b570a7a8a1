"""Child processes: started, watched and always reaped; and the child's own half of that bargain.

A child runs in a session of its own and is told two fds on its command line: `--ready-fd`, where
it writes one JSON line {"ready": {...}} or {"error": "sentence"}, and `--lifeline-fd`, a pipe
that ends when its parent dies. Knows nothing of what a child does.
"""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from protocol.errors import SidestageError
from protocol.pidfd import is_readable, open_pidfd

STOP_TIMEOUT_S = 10.0

_MAX_READY_BYTES = 65536
_TAIL_BYTES = 4096


class Child:
    """One child process. Owned by the process that spawned it: a fork of that process cannot stop it."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        name: str,
        ready_timeout_s: float | None,
        ready_fd: int,
        lifeline_fd: int,
        stderr_fd: int | None,
    ) -> None:
        self.name = name
        self.pid = process.pid
        #: Readable once the child has died; valid until `close`.
        self.pidfd = open_pidfd(process.pid)
        self._process = process
        self._ready_timeout_s = ready_timeout_s
        self._owner = os.getpid()
        self._fds = [self.pidfd, ready_fd, lifeline_fd] + ([] if stderr_fd is None else [stderr_fd])
        self._ready_fd = ready_fd
        self._stderr_fd = stderr_fd

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        *,
        name: str,
        pass_fds: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        ready_timeout_s: float | None = 30.0,
        inherit_stderr: bool = False,
    ) -> Self:
        """Start `argv` (with the two fds appended). `ready_timeout_s` None: wait as long as it takes.

        Without `inherit_stderr` what the child writes to stderr is kept in memory for `stderr_tail`.
        Raises OSError when the program cannot be started.
        """
        ready_read, ready_write = os.pipe()
        lifeline_read, lifeline_write = os.pipe()
        stderr_fd = None if inherit_stderr else os.memfd_create(f"{name}-stderr", os.MFD_CLOEXEC)
        os.write(lifeline_write, f"{os.getpid()}\n".encode())
        try:
            process = subprocess.Popen(
                [*argv, "--ready-fd", str(ready_write), "--lifeline-fd", str(lifeline_read)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr_fd,
                env=env,
                pass_fds=(*pass_fds, ready_write, lifeline_read),
                start_new_session=True,
            )
        except BaseException:
            for fd in (ready_read, lifeline_write, stderr_fd):
                if fd is not None:
                    os.close(fd)
            raise
        finally:
            os.close(ready_write)
            os.close(lifeline_read)
        return cls(process, name, ready_timeout_s, ready_read, lifeline_write, stderr_fd)

    def wait_ready(self) -> dict[str, Any]:
        """What the child reports once it is ready.

        Raises SidestageError with the child's own sentence, or with the end of its stderr when
        it died without one, or when it is not ready in time; the child has been stopped then.
        """
        try:
            return self._report(self._read_ready_line())
        except BaseException:
            self.stop(timeout_s=0.0)
            raise

    def poll(self) -> int | None:
        """The exit status (negative: the signal that killed it), or None while the child lives."""
        return self._process.poll()

    def wait(self, timeout_s: float) -> int | None:
        """Wait for the child's end; its exit status, or None when it still lives."""
        if self.poll() is None and self.pidfd in self._fds:
            is_readable([self.pidfd], timeout_s)
        return self.poll()

    def send_signal(self, number: int) -> None:
        """Send a signal unless the child has ended (its pid could be another's by then)."""
        self._process.send_signal(number)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """SIGTERM, and SIGKILL to its whole session when it still lives after `timeout_s`; then reap.

        Returns the exit status. Idempotent; in a fork of the owner it does nothing.
        """
        if os.getpid() != self._owner:
            return 0
        if self.poll() is None and timeout_s > 0:
            self.send_signal(signal.SIGTERM)
            self.wait(timeout_s)
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        return self._process.wait()

    def close(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop the child and close our fds. Idempotent."""
        if os.getpid() == self._owner:
            self.stop(timeout_s)
        while self._fds:
            os.close(self._fds.pop())

    def stderr_tail(self) -> str:
        """The end of what the child wrote to stderr; empty when stderr was inherited."""
        if self._stderr_fd is None or self._stderr_fd not in self._fds:
            return ""
        size = os.fstat(self._stderr_fd).st_size
        tail = os.pread(self._stderr_fd, _TAIL_BYTES, max(size - _TAIL_BYTES, 0))
        return tail.decode(errors="replace").strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _read_ready_line(self) -> bytes:
        timeout_s = self._ready_timeout_s
        until = None if timeout_s is None else time.monotonic() + timeout_s
        line = b""
        while not line.endswith(b"\n") and len(line) < _MAX_READY_BYTES:
            rest = None if until is None else max(until - time.monotonic(), 0.0)
            if not is_readable([self._ready_fd], rest):
                raise SidestageError(
                    f"{self.name} was not ready within {timeout_s:g} s (raise --timeout or SIDESTAGE_TIMEOUT)"
                )
            part = os.read(self._ready_fd, _MAX_READY_BYTES - len(line))
            if not part:
                break
            line += part
        return line

    def _report(self, line: bytes) -> dict[str, Any]:
        report = _parse_report(line)
        match report:
            case {"ready": dict() as ready}:
                return ready
            case {"error": str() as text}:
                raise SidestageError(text)
        self.wait(1.0)
        status = self.stop(timeout_s=1.0)
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        tail = self.stderr_tail()
        raise SidestageError(f"{self.name} {how} before it was ready{': ' + tail if tail else ''}")


def _parse_report(line: bytes) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None


# --- the child's side --------------------------------------------------------------------------


def report_ready(fd: int, facts: Mapping[str, object]) -> None:
    """Tell the parent that all is ready, and close the pipe."""
    _report_line(fd, {"ready": dict(facts)})


def report_error(fd: int, text: str) -> None:
    """Tell the parent in one sentence why this child ends, and close the pipe."""
    _report_line(fd, {"error": text})


def _report_line(fd: int, report: Mapping[str, object]) -> None:
    with contextlib.suppress(BrokenPipeError), os.fdopen(fd, "wb") as pipe:
        pipe.write(json.dumps(report).encode() + b"\n")


class Lifeline:
    """Tells a child that its parent has died.

    The pipe ends when the parent and every fork of it that kept the pipe's other end are gone;
    the parent's pidfd, whose number the pipe carries, sees the parent alone.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        os.set_inheritable(fd, False)
        os.set_blocking(fd, False)
        self._parent_fd = self._watch_parent()

    @property
    def fds(self) -> list[int]:
        """Poll these for reading: any of them readable means that the parent is dead."""
        return [fd for fd in (self._fd, self._parent_fd) if fd >= 0]

    def is_cut(self) -> bool:
        """The parent is dead."""
        return is_readable(self.fds, 0)

    def watch(self, on_cut: Callable[[], None]) -> None:
        """Call `on_cut` from a daemon thread when the parent dies."""

        def wait() -> None:
            is_readable(self.fds, None)
            on_cut()

        threading.Thread(target=wait, name="lifeline", daemon=True).start()

    def close(self) -> None:
        """Close the fds. Idempotent; not while `watch` is running."""
        for fd in self.fds:
            os.close(fd)
        self._fd = self._parent_fd = -1

    def _watch_parent(self) -> int:
        try:
            parent = int(os.read(self._fd, 32))
        except (BlockingIOError, ValueError):
            return -1  # a bare pipe, or one that has ended already: the pipe alone must tell
        if parent == os.getppid():
            return open_pidfd(parent)
        return os.eventfd(1)  # dead already, and another process took us in: readable for ever
