"""Page-locked frames: how many of an arena's frames the device may read by itself.

Ranges begin and end at frames, for a copy must not cross from one registration into another, and
are short enough for drivers that refuse large ones. What fails is rolled back whole.
"""

from collections.abc import Iterator
from contextlib import ExitStack

from compute.ledger import Completion
from compute.transports.driver import Driver, DriverError
from protocol.arena import Arena

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


def lock_frames(driver: Driver, arena: Arena, most_bytes: int | None) -> PageLock:
    """All frames if the driver lets us and `most_bytes` allows it; else as many as it does, by halves."""
    stride = arena.geometry.frame_bytes
    count, reason = arena.geometry.num_frames, ""
    if most_bytes is not None and count * stride > most_bytes:
        count, reason = most_bytes // stride, "the system's limit for page-locked memory is lower"
    while count and count * stride >= min(LEAST_BYTES, arena.geometry.num_frames * stride):
        try:
            return PageLock(driver, arena, count, reason)
        except DriverError as error:
            count, reason = count // 2, str(error)
    return PageLock(driver, arena, 0, reason)


def ranges_of(num_frames: int, frame_bytes: int) -> Iterator[tuple[int, int]]:
    """(first frame, number of frames) of each registration."""
    most = max(MOST_RANGE_BYTES // frame_bytes, 1)
    for first in range(0, num_frames, most):
        yield first, min(most, num_frames - first)
