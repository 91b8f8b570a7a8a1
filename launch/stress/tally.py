"""A client's tally: counters and latencies in a small mapped file, which outlives a killed client.

One client writes at a time, its supervisor reads whenever it likes.
"""

import mmap
import os
from enum import IntEnum, auto
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt


class Count(IntEnum):
    """Words of a tally."""

    #: the one who counts is ready
    READY = 0
    #: experts that arrived and were checked, and their bytes
    TRANSFERS = auto()
    BYTES = auto()
    #: arrived with other bytes than the store's
    CORRUPT = auto()
    #: awaited, and never came
    LOST = auto()
    #: not delivered because its bytes were bad on disk, and delivered later
    REFUSED = auto()
    REPAIRED = auto()
    #: sessions begun anew because a command was lost
    RENEWALS = auto()
    STEPS = auto()
    #: time waited for experts, and time during which some were on their way
    STALL_NS = auto()
    COMING_NS = auto()
    LINK_BUSY_NS = auto()
    LINK_OPEN_NS = auto()
    LEAKED_FDS = auto()
    NUM_DEMANDS = auto()
    NUM_IDLE_TRIPS = auto()


_WORDS_BYTES = 4096
#: The last so many latencies of each kind are kept.
RING = 65536


class Tally:
    """`demand_us`, `idle_us`: rings of latencies; how many were ever written is among the counts."""

    def __init__(self, path: Path) -> None:
        """Map the tally at `path`."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(fd, _WORDS_BYTES + 2 * RING * 4)
        finally:
            os.close(fd)
        self._words = np.frombuffer(self._map, np.int64, _WORDS_BYTES // 8)
        self._demand_us = np.frombuffer(self._map, np.uint32, RING, _WORDS_BYTES)
        self._idle_us = np.frombuffer(self._map, np.uint32, RING, _WORDS_BYTES + RING * 4)

    @classmethod
    def create(cls, path: Path) -> Self:
        """A tally with nothing on it."""
        path.write_bytes(bytes(_WORDS_BYTES + 2 * RING * 4))
        return cls(path)

    def __getitem__(self, count: Count) -> int:
        return int(self._words[count])

    def __setitem__(self, count: Count, value: int) -> None:
        self._words[count] = value

    def note_demand(self, latency_ns: int) -> None:
        self._demand_us[self[Count.NUM_DEMANDS] % RING] = min(latency_ns // 1000, 2**32 - 1)
        self[Count.NUM_DEMANDS] += 1

    def note_idle_trip(self, latency_ns: int) -> None:
        self._idle_us[self[Count.NUM_IDLE_TRIPS] % RING] = min(latency_ns // 1000, 2**32 - 1)
        self[Count.NUM_IDLE_TRIPS] += 1

    @property
    def demand_us(self) -> npt.NDArray[np.uint32]:
        return self._demand_us[: self[Count.NUM_DEMANDS]].copy()

    @property
    def idle_us(self) -> npt.NDArray[np.uint32]:
        return self._idle_us[: self[Count.NUM_IDLE_TRIPS]].copy()

    def close(self) -> None:
        """Unmap. Idempotent."""
        self._words = np.empty(0, np.int64)
        self._demand_us = self._idle_us = np.empty(0, np.uint32)
        self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
