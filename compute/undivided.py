"""Undivided work: what Ctrl-C must not cut in two waits for its end, in a program that embeds us.

For the length of a pass, and in the main thread alone, a handler of ours stands before the one that
is there; a SIGINT that falls between two pieces of undivided work goes through to it at once, one
that falls into such a piece at the piece's end, and a second one at once in any case. Where SIGINT
is not handled in Python, nothing is changed.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]


class Undivided:
    """`with undivided:` around a piece of work, `with undivided.guarded():` around a whole pass."""

    def __init__(self) -> None:
        self._is_working = False
        self._is_awaited = False
        self._before: Handler | None = None

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Ctrl-C waits for the end of undivided work. Passes do not overlap, and nest harmlessly."""
        before = signal.getsignal(signal.SIGINT)
        in_main_thread = threading.current_thread() is threading.main_thread()
        if not in_main_thread or not callable(before) or before == self._hear:
            yield
            return
        self._before = before
        self._is_working = self._is_awaited = False
        signal.signal(signal.SIGINT, self._hear)
        try:
            yield
        finally:
            replaced = signal.signal(signal.SIGINT, before)
            if replaced != self._hear:
                signal.signal(signal.SIGINT, replaced)  # the pass has installed one of its own

    def __enter__(self) -> None:
        self._is_working = True

    def __exit__(self, *exc_info: object) -> None:
        self._is_working = False
        if self._is_awaited:
            self._is_awaited = False
            self._pass_on(signal.SIGINT, None)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._is_working and not self._is_awaited:
            self._is_awaited = True
            return
        self._is_awaited = False
        self._pass_on(number, frame)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self._before:
            self._before(number, frame)
