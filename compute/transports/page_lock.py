"""Page-locked frames: how many of an arena's frames the device may read by itself.

Ranges begin and end at frames, for a copy must not cross from one registration into another, and
are short enough for drivers that refuse large ones. What fails is rolled back whole.
"""

from collections.abc import Iterator
from contextlib import ExitStack

from compute.ledger import Completion
from compute.transports.chunks import MAX_IN_FLIGHT
from compute.transports.driver import Driver, DriverError
from compute.transports.locked_ring import LockedRing
from protocol.arena import Arena
from protocol.units import format_size

#: One registration at most, unless a single frame is larger.
MOST_RANGE_BYTES = 2**30
#: A lock on less than this is not worth having beside a ring.
LEAST_BYTES = 64 * 2**20


class PageLock:
    """The first `num_frames` of `arena`, page-locked until `close`; `reason` says why not more, or ""."""

    def __init__(self, driver: Driver, arena: Arena, num_frames: int, reason: str = "") -> None:
        """Raises DriverError, and then nothing is locked. The mapping must be writable."""
        self.num_frames = num_frames
        self.reason = reason
        self._driver = driver
        self._arena = arena
        self._address = arena.frames.ctypes.data
        with ExitStack() as locked:
            for first, count in ranges_of(num_frames, arena.geometry.frame_bytes):
                address = self._address + first * arena.geometry.frame_bytes
                driver.page_lock(address, count * arena.geometry.frame_bytes)
                locked.callback(driver.page_unlock, address)
            self._locked = locked.pop_all()

    @property
    def num_bytes(self) -> int:
        return self.num_frames * self._arena.geometry.frame_bytes

    @property
    def is_whole(self) -> bool:
        """Every frame is locked."""
        return self.num_frames == self._arena.geometry.num_frames

    def address_of(self, source: Completion) -> int | None:
        """Where the frame lies; None unless it is locked."""
        if source.arena is not self._arena or source.frame >= self.num_frames:
            return None
        return self._address + source.frame * self._arena.geometry.frame_bytes

    def close(self) -> None:
        """Unlock, the last range first. Nothing may be on its way out of a frame. Idempotent."""
        self.num_frames = 0
        self._locked.close()


def lock_frames(
    driver: Driver, arena: Arena, most_bytes: int | None, chunk_bytes: int
) -> tuple[PageLock, LockedRing | None]:
    """All frames, if the driver lets us and `most_bytes` allows it; else a ring, and as many as then go.

    The ring comes first, for without it nothing moves; frames are tried by halves. Raises
    DriverError when not even the ring can be had.
    """
    stride, num_frames = arena.geometry.frame_bytes, arena.geometry.num_frames
    count, reason = num_frames, ""
    if most_bytes is None or num_frames * stride <= most_bytes:
        try:
            return PageLock(driver, arena, num_frames), None
        except DriverError as error:
            count, reason = num_frames // 2, str(error)
    else:
        count, reason = most_bytes // stride, f"the system's limit is {format_size(most_bytes)}"
    ring = LockedRing(driver, MAX_IN_FLIGHT, chunk_bytes)
    while count * stride >= LEAST_BYTES:
        try:
            return PageLock(driver, arena, count, reason), ring
        except DriverError as error:
            count, reason = count // 2, str(error)
    return PageLock(driver, arena, 0, reason), ring


def ranges_of(num_frames: int, frame_bytes: int) -> Iterator[tuple[int, int]]:
    """(first frame, number of frames) of each registration."""
    most = max(MOST_RANGE_BYTES // frame_bytes, 1)
    for first in range(0, num_frames, most):
        yield first, min(most, num_frames - first)
