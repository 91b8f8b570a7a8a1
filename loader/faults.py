"""Faults on purpose: a board of words that a stress run shares with its loader.

A small file, mapped by both. Each word says how often its fault is still to happen, or how long
one lasts; zero is none. A loader looks at a board only when it was started with `--faults FILE`,
which no command of ours does but `sidestage stress`.
"""

import mmap
import os
import resource
import time
from enum import IntEnum
from pathlib import Path
from typing import Self

import numpy as np

_BOARD_BYTES = 4096


class Word(IntEnum):
    """What can be written on the board."""

    #: every read of the store takes this many microseconds more
    READ_DELAY_US = 0
    #: this many commands of clients that have said Hello are not heard
    LOST_COMMANDS = 1
    #: this many loaders find too little address space for their arena when they start
    FULL_STARTS = 2


class FaultBoard:
    """The mapping of one board. Words change one at a time; whoever takes from one is alone in it."""

    def __init__(self, path: Path) -> None:
        """Map the board at `path`. Raises OSError, ValueError when it is none."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(fd, _BOARD_BYTES)
        finally:
            os.close(fd)
        self._words = np.frombuffer(self._map, np.int64)

    @classmethod
    def create(cls, path: Path) -> Self:
        """A board on which nothing is written."""
        path.write_bytes(bytes(_BOARD_BYTES))
        return cls(path)

    def __getitem__(self, word: Word) -> int:
        return int(self._words[word])

    def __setitem__(self, word: Word, value: int) -> None:
        self._words[word] = value

    def close(self) -> None:
        """Unmap. Idempotent."""
        self._words = np.empty(0, np.int64)
        self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # --- the loader's side -------------------------------------------------------------------

    def take(self, word: Word) -> bool:
        """Whether the fault is to happen now; it is then to happen once less."""
        left = self[word]
        if left > 0:
            self[word] = left - 1
        return left > 0

    def delay_read(self) -> None:
        """A slow disk."""
        if delay_us := self[Word.READ_DELAY_US]:
            time.sleep(delay_us / 1e6)

    def fill_memory(self, arena_bytes: int) -> None:
        """On a start that is to fail: leave this process less address space than the arena needs."""
        if self.take(Word.FULL_STARTS):
            _, most = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (_address_space_bytes() + arena_bytes // 2, most))


def _address_space_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
