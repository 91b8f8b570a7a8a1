"""How fast the way to a device is: pageable and page-locked, whole and in chunks; and page-locking itself.

Measures through the transport's own driver, by the device's clock. Takes and gives back memory on
both sides.
"""

import mmap
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from compute.transports.chunks import MAX_IN_FLIGHT
from compute.transports.driver import Driver, DriverError, Event

MEASURED_BYTES = 256 * 2**20
CHUNKS = tuple(2**exponent for exponent in range(16, 25))
_NUM_TRIES = 3
_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class LinkSpeeds:
    """Bytes a second. `by_chunk`: with two chunks in flight, as experts cross; `best`: one large copy."""

    best: float
    by_chunk: dict[int, float]
    pageable: float
    page_locking: float
    bytes: int


def measure_link(driver: Driver, num_bytes: int = MEASURED_BYTES) -> LinkSpeeds:
    """The best of three of each. Raises DriverError, also when the device stands still."""
    memory = np.frombuffer(mmap.mmap(-1, num_bytes), np.uint8)
    memory[:: mmap.PAGESIZE] = 1  # every page is there before anything is timed
    target = torch.empty(num_bytes, dtype=torch.uint8, device=driver.device)
    pageable = _best(driver, target, memory, num_bytes)
    with _page_locked(driver, memory) as locking:
        best = _best(driver, target, memory, num_bytes)
        by_chunk = {chunk: _best(driver, target, memory, chunk) for chunk in CHUNKS if chunk <= num_bytes}
    return LinkSpeeds(best, by_chunk, pageable, locking, num_bytes)


@contextmanager
def _page_locked(driver: Driver, memory: npt.NDArray[np.uint8]) -> Iterator[float]:
    """Yields the speed of page-locking."""
    address = int(memory.ctypes.data)
    started_s = time.perf_counter()
    driver.page_lock(address, len(memory))
    try:
        yield len(memory) / max(time.perf_counter() - started_s, 1e-9)
    finally:
        driver.page_unlock(address)


def _best(driver: Driver, target: torch.Tensor, memory: npt.NDArray[np.uint8], chunk: int) -> float:
    return max(_speed(driver, target, memory, chunk) for _ in range(_NUM_TRIES))


def _speed(driver: Driver, target: torch.Tensor, memory: npt.NDArray[np.uint8], chunk: int) -> float:
    """All of `memory`, two chunks in flight; by the device's clock, from the first to the last."""
    address, num_bytes = int(memory.ctypes.data), len(memory)
    first = driver.mark_copies()
    flights: deque[Event] = deque()
    for start in range(0, num_bytes, chunk):
        if len(flights) == MAX_IN_FLIGHT:
            _await(flights.popleft())
        driver.copy(target.data_ptr() + start, address + start, min(chunk, num_bytes - start))
        flights.append(driver.mark_copies())
    last = flights[-1]
    for flight in flights:
        _await(flight)
    return num_bytes / max(driver.elapsed_ns(first, last), 1) * 1e9


def _await(event: Event) -> None:
    until_s = time.monotonic() + _TIMEOUT_S
    while not event.is_done():
        if time.monotonic() > until_s:
            raise DriverError(f"the device has not finished a copy within {_TIMEOUT_S:g} s: it stands still")
