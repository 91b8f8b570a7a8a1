"""Ctrl-C and SIGTERM as something a poll loop can see, instead of an exception anywhere.

Only for the supervisor's main thread, and only while it watches its children.
"""

import contextlib
import os
import signal
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While entered, SIGINT and SIGTERM make `fileno()` readable and do nothing else."""

    def __enter__(self) -> Self:
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._old_wakeup_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, _ignore) for number in SIGNALS}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup_fd)
        os.close(self._read_fd)
        os.close(self._write_fd)

    def fileno(self) -> int:
        return self._read_fd

    def taken(self) -> int:
        """How many have come since the last call."""
        return len(self.taken_signals())

    def taken_signals(self) -> list[int]:
        """Which have come since the last call."""
        with contextlib.suppress(BlockingIOError):
            return [number for number in os.read(self._read_fd, 64) if number in SIGNALS]
        return []


def _ignore(number: int, frame: FrameType | None) -> None:
    """The wake-up fd tells; a handler must exist for it to be written."""
