"""Ctrl-C and SIGTERM as something a poll loop can see, instead of an exception anywhere.

Only for the supervisor's main thread, and only while it watches its children. Where it waits in
code that no poll loop can watch, like input(), they are an exception again, and none is missed.
"""

import contextlib
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: A signal that comes just before a wait is seen at the latest after this time.
_TICK_S = 0.25


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


class Interrupts:
    """While entered, SIGINT and SIGTERM make `fileno()` readable and do nothing else, outside `during`."""

    def __init__(self) -> None:
        self._raises = False

    def __enter__(self) -> Self:
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._old_wakeup_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, self._come) for number in SIGNALS}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup_fd)
        os.close(self._read_fd)
        os.close(self._write_fd)

    def fileno(self) -> int:
        return self._read_fd

    def during(self, wait: Callable[[], str]) -> str:
        """What `wait` returns, unless Ctrl-C or SIGTERM ends it.

        Raises KeyboardInterrupt for a Ctrl-C from now on, Terminated for a SIGTERM that has not been taken.
        """
        before = signal.signal(signal.SIGALRM, _tick)
        timer = signal.setitimer(signal.ITIMER_REAL, _TICK_S, _TICK_S)
        try:
            try:
                self._raises = True
                if signal.SIGTERM in self.taken_signals():
                    raise Terminated
                return wait()
            finally:
                self._raises = False  # alone in here: an exception may come before it
        finally:
            signal.setitimer(signal.ITIMER_REAL, *timer)
            signal.signal(signal.SIGALRM, before)

    def taken(self) -> int:
        """How many have come since the last call."""
        return len(self.taken_signals())

    def taken_signals(self) -> list[int]:
        """Which have come since the last call."""
        come = b""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._read_fd, 4096):
                come += part
        return [number for number in come if number in SIGNALS]

    def _come(self, number: int, frame: FrameType | None) -> None:
        """The wake-up fd has told already; a handler must exist for it to be written."""
        if self._raises:
            self._raises = False  # one is enough: what cleans up is not interrupted
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _tick(number: int, frame: FrameType | None) -> None:
    """A wait in C runs no Python handler until a system call is interrupted.

    A signal that comes just before that call does not interrupt it: its handler waits for the next signal.
    """
