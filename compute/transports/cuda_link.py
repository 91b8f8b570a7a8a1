"""The link to a device: one copy stream, one event after each chunk, and the wait before a refill.

Owns what is on its way, and for each slot the point after which compute does not read it any
more: a copy into the slot waits for that point on the device, never on the host. A slot's bytes
count as there when the event behind its last chunk is done. Chunks out of frames that are not
page-locked go through a small ring that is.
"""

import time
from collections import deque
from collections.abc import Collection
from typing import NamedTuple

from torch import Tensor

from compute.ledger import Completion
from compute.transports.alarm import Alarm
from compute.transports.chunks import MAX_IN_FLIGHT, Chunk
from compute.transports.driver import Driver, Event
from compute.transports.locked_ring import LockedRing
from compute.transports.page_lock import PageLock
from protocol.timeline import Timeline

#: 80 us on PCIe 5 x16, 160 on PCIe 4: a demand waits for two at most, and the gaps between do not count.
CHUNK_BYTES = 4 * 2**20

#: Bytes per second until the first chunk has told; only the alarm is set by it.
_FIRST_GUESS = 20e9
_SHORTEST_LOOK_NS = 20_000
#: Whoever rests looks again and again for so long, and then as rarely as it is late.
_OVERDUE_NS = 200_000
_LONGEST_NAP_S = 0.001


class _Flight(NamedTuple):
    """A chunk on its way, between two marks of the copy stream; it should have crossed at `due_ns`."""

    chunk: Chunk
    start: Event
    end: Event
    due_ns: int


class CudaLink:
    """Into `pool`, uint8 [num_slots, stride] on `driver`'s device, out of the frames of `lock` or by `ring`.

    A ring is made when there is none and an arena comes that is not locked. Not thread-safe, but
    `vacate` and the properties may be called beside the rest. Closing unlocks both.
    """

    def __init__(
        self,
        driver: Driver,
        lock: PageLock,
        pool: Tensor,
        *,
        ring: LockedRing | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        timeline: Timeline | None = None,
    ) -> None:
        self.busy_ns = 0
        #: Chunks that went through the ring.
        self.num_by_ring = 0
        self._driver = driver
        self._lock = lock
        self._pool = pool
        self._target, self._stride = pool.data_ptr(), pool.stride(0)
        self._chunk_bytes = chunk_bytes
        self._timeline = timeline
        self._flights: deque[_Flight] = deque()
        self._last_uses: dict[int, Event] = {}
        self._ring = ring
        self._bytes_per_ns = _FIRST_GUESS / 1e9
        self._crossed_ns = 0
        self._alarm = Alarm()
        self.fd = self._alarm.fd
        # The pool may lie where something was that compute is not done with.
        driver.hold_copies(driver.mark_uses())

    @property
    def is_asynchronous(self) -> bool:
        """A copy into the ring takes as long as a chunk: that is not for the compute thread."""
        return self._lock.is_whole

    @property
    def is_busy(self) -> bool:
        return bool(self._flights)

    def seconds(self, num_bytes: int) -> float:
        return 0.0  # nothing beside any timeout

    def vacate(self, slots: Collection[int]) -> None:
        last_use = self._driver.mark_uses()
        self._last_uses.update(dict.fromkeys(slots, last_use))

    def send(self, chunk: Chunk, source: Completion, ready_ns: int, flow_id: int | None) -> None:
        address = self._lock.address_of(source)
        if address is None:
            address = self._by_ring(chunk, source)
        else:
            address += chunk.start
        last_use = self._last_uses.pop(chunk.job, None)
        if last_use is not None and not last_use.is_done():
            self._driver.hold_copies(last_use)
        start = self._driver.mark_copies()
        self._driver.copy(self._target + chunk.job * self._stride + chunk.start, address, chunk.num_bytes)
        now_ns = time.monotonic_ns()
        free_ns = max(self._flights[-1].due_ns if self._flights else 0, now_ns)
        due_ns = free_ns + int(chunk.num_bytes / self._bytes_per_ns)
        self._flights.append(_Flight(chunk, start, self._driver.mark_copies(), due_ns))
        if self._timeline and flow_id is not None:
            self._timeline.flow("t", flow_id, "link", now_ns)

    def crossed(self) -> Chunk | None:
        if not self._flights or not self._flights[0].end.is_done():
            return None
        flight = self._flights.popleft()
        lasted_ns = max(self._driver.elapsed_ns(flight.start, flight.end), 1)
        self.busy_ns += lasted_ns
        self._bytes_per_ns += (flight.chunk.num_bytes / lasted_ns - self._bytes_per_ns) / 8
        if self._timeline:
            self._draw(self._timeline, flight.chunk, lasted_ns)
        return flight.chunk

    def arm(self) -> None:
        if not self._flights:
            self._alarm.set(None)
            return
        self._alarm.set(max(self._flights[0].due_ns, time.monotonic_ns() + _SHORTEST_LOOK_NS))

    def rest(self) -> None:
        try:
            left_ns = self._flights[0].due_ns - time.monotonic_ns()
        except IndexError:
            return  # another thread has landed it meanwhile
        if left_ns > -_OVERDUE_NS:
            left_ns = max(left_ns - 2 * _SHORTEST_LOOK_NS, 0)
        time.sleep(min(abs(left_ns) / 1e9, _LONGEST_NAP_S))

    def close(self, timeout_s: float) -> None:
        """Also lets compute finish with the slots. Raises RuntimeError after the timeout."""
        uses = self._driver.mark_uses()
        until = time.monotonic() + timeout_s
        while self._flights or not uses.is_done():
            if self.crossed() is None:
                if time.monotonic() > until:
                    raise RuntimeError(
                        f"the device has not finished within {timeout_s:g} s: its page-locked memory stays "
                        f"until this process ends (raise --timeout or SIDESTAGE_TIMEOUT)"
                    )
                time.sleep(_SHORTEST_LOOK_NS / 1e9)
        if self._ring:
            self._ring.close()
        self._lock.close()
        self._alarm.close()
        self._pool = self._pool[:0].clone()

    def _by_ring(self, chunk: Chunk, source: Completion) -> int:
        """Copy the chunk to page-locked memory; where it is now."""
        if self._ring is None:
            self._ring = LockedRing(self._driver, MAX_IN_FLIGHT, self._chunk_bytes)
        self.num_by_ring += 1
        return self._ring.put(source.blob()[chunk.start : chunk.end])

    def _draw(self, timeline: Timeline, chunk: Chunk, lasted_ns: int) -> None:
        """When it crossed, as far as the host can tell: seen now, and after the chunk before it."""
        end_ns = max(time.monotonic_ns(), self._crossed_ns + 1)
        start_ns = max(end_ns - lasted_ns, self._crossed_ns)
        self._crossed_ns = end_ns
        timeline.span("copy", "link", start_ns, end_ns, slot=chunk.job, bytes=chunk.num_bytes)
