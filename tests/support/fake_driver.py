"""A device without a device: one FIFO copy stream and one compute stream, in virtual time.

Time goes on by a tick whenever somebody looks. Bytes move when their copy ends, so that a frame
given back too early shows. Strict: a copy into a slot that is being read, a third copy in flight,
or one out of two registrations fails the test.
"""

import ctypes
import threading
from collections import deque
from dataclasses import dataclass

import torch

from compute.transports.driver import DriverError


@dataclass(frozen=True)
class FakeEvent:
    driver: "FakeDriver"
    at_ns: int

    def is_done(self) -> bool:
        self.driver.tick()
        return self.driver.now_ns >= self.at_ns


@dataclass(frozen=True)
class _Copy:
    target: int
    source: int
    num_bytes: int
    start_ns: int
    end_ns: int


@dataclass(frozen=True)
class _Read:
    first: int
    last: int
    start_ns: int
    end_ns: int


class FakeDriver:
    """`rate`: bytes a virtual second. `most_locked`: what may be page-locked; `most_range` at once."""

    device = torch.device("cpu")
    name = "a fake"

    def __init__(
        self,
        *,
        rate: float = 1e9,
        tick_ns: int = 10_000,
        most_locked: int = 2**62,
        most_range: int = 2**62,
        memory: tuple[int, int] = (2**40, 2**40),
        reads_pageable: bool = False,
        reads_in_place: bool = True,
    ) -> None:
        self.now_ns = 0
        self.num_copies = 0
        self.num_unlocked_sources = 0
        self.most_in_flight = 0
        self.is_poisoned = False
        self.locked: dict[int, int] = {}
        self._rate = rate
        self._tick_ns = tick_ns
        self._most_locked = most_locked
        self._most_range = most_range
        self._memory = memory
        self._reads_pageable = reads_pageable
        self._reads_in_place = reads_in_place
        self._copy_tail_ns = 0
        self._compute_tail_ns = 0
        self._copies: deque[_Copy] = deque()
        self._reads: list[_Read] = []
        self._mutex = threading.RLock()

    # --- what tests say -------------------------------------------------------------------------

    def tick(self, ticks: int = 1) -> None:
        """Time goes on, and what is due by then has happened."""
        with self._mutex:
            if self.is_poisoned:
                return
            self.now_ns += ticks * self._tick_ns
            while self._copies and self._copies[0].end_ns <= self.now_ns:
                self._land(self._copies.popleft())
            self._reads = [read for read in self._reads if read.end_ns > self.now_ns]

    def read(self, blob: torch.Tensor, lasts_ns: int) -> None:
        """Compute launches something that reads all of `blob`."""
        with self._mutex:
            start_ns = max(self._compute_tail_ns, self.now_ns)
            self._compute_tail_ns = start_ns + lasts_ns
            first = blob.data_ptr()
            read = _Read(first, first + blob.numel(), start_ns, self._compute_tail_ns)
            for copy in self._copies:
                _check_apart(read, copy)
            self._reads.append(read)

    @property
    def num_locked(self) -> int:
        return sum(self.locked.values())

    # --- the driver's contract --------------------------------------------------------------------

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        with self._mutex:
            start_ns = max(self._copy_tail_ns, self.now_ns)
            self._copy_tail_ns = start_ns + max(int(num_bytes / self._rate * 1e9), 1)
            copy = _Copy(target, source, num_bytes, start_ns, self._copy_tail_ns)
            for read in self._reads:
                _check_apart(read, copy)
            self._check_source(source, num_bytes)
            self._copies.append(copy)
            self.num_copies += 1
            self.most_in_flight = max(self.most_in_flight, len(self._copies))
            assert len(self._copies) <= 2, "three chunks in flight"

    def mark_copies(self) -> FakeEvent:
        return FakeEvent(self, max(self._copy_tail_ns, self.now_ns))

    def mark_uses(self) -> FakeEvent:
        return FakeEvent(self, max(self._compute_tail_ns, self.now_ns))

    def hold_copies(self, until: FakeEvent) -> None:  # type: ignore[override]
        with self._mutex:
            self._copy_tail_ns = max(self._copy_tail_ns, self.now_ns, until.at_ns)

    def elapsed_ns(self, start: FakeEvent, end: FakeEvent) -> int:  # type: ignore[override]
        assert self.now_ns >= end.at_ns, "an event is asked for its time before it is done"
        return end.at_ns - start.at_ns

    def page_lock(self, address: int, num_bytes: int) -> None:
        assert address % 4096 == 0 and num_bytes > 0
        assert all(address >= a + n or address + num_bytes <= a for a, n in self.locked.items()), "twice"
        if self.num_locked + num_bytes > self._most_locked or num_bytes > self._most_range:
            raise DriverError("the fake driver page-locks no more")
        self.locked[address] = num_bytes

    def page_unlock(self, address: int) -> None:
        with self._mutex:
            num_bytes = self.locked.pop(address)
            assert not any(address <= copy.source < address + num_bytes for copy in self._copies)

    def reads_in_place(self) -> bool:
        return self._reads_in_place

    def memory(self) -> tuple[int, int]:
        return self._memory

    # --- its inside -------------------------------------------------------------------------------

    def _land(self, copy: _Copy) -> None:
        ctypes.memmove(copy.target, copy.source, copy.num_bytes)

    def _check_source(self, source: int, num_bytes: int) -> None:
        ranges = self.locked.items()
        if not any(first <= source and source + num_bytes <= first + size for first, size in ranges):
            self.num_unlocked_sources += 1
            assert self._reads_pageable, (
                "a copy out of memory that is not page-locked, or of two registrations"
            )


def _check_apart(read: _Read, copy: _Copy) -> None:
    """A slot is not refilled while it is read, nor read while it is filled."""
    if read.first < copy.target + copy.num_bytes and copy.target < read.last:
        assert copy.start_ns >= read.end_ns or copy.end_ns <= read.start_ns, (
            "a slot is read and filled at once"
        )
