"""A link of a stated speed in front of memory of our own: bytes are copied at once, and cross when due.

The stand-in for a copy engine where there is none. Used by one thread.
"""

import time
from collections import deque
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from compute.ledger import Completion
from compute.transports.alarm import Alarm
from compute.transports.chunks import Chunk
from compute.transports.link import LinkClock
from protocol.timeline import Timeline


class _Flight(NamedTuple):
    """A chunk on the link, which has crossed at `end_ns`."""

    chunk: Chunk
    end_ns: int


class ThrottledLink:
    """Into `slots`, uint8 [num_slots, stride], at `rate` bytes a second (None: as fast as bytes copy)."""

    is_asynchronous = False

    def __init__(self, slots: npt.NDArray[np.uint8], rate: int | None, timeline: Timeline | None) -> None:
        self._slots = slots
        self._clock = LinkClock(rate)
        self._timeline = timeline
        self._flights: deque[_Flight] = deque()
        self._alarm = Alarm()
        self.fd = self._alarm.fd

    @property
    def is_busy(self) -> bool:
        return bool(self._flights)

    @property
    def busy_ns(self) -> int:
        return self._clock.busy_ns

    def seconds(self, num_bytes: int) -> float:
        return num_bytes / self._clock.rate if self._clock.rate else 0.0

    def vacate(self, slots: Collection[int]) -> None:
        pass  # the CPU has read a slot when it says so

    def send(self, chunk: Chunk, source: Completion, ready_ns: int, flow_id: int | None) -> None:
        from_ns = time.monotonic_ns()
        self._slots[chunk.job, chunk.start : chunk.end] = source.blob()[chunk.start : chunk.end]
        copied_ns = time.monotonic_ns()
        start_ns, end_ns = self._clock.book(ready_ns, from_ns, copied_ns, chunk.num_bytes)
        self._flights.append(_Flight(chunk, max(end_ns, copied_ns)))
        if self._timeline:
            self._timeline.span("copy", "link", start_ns, end_ns, slot=chunk.job, bytes=chunk.num_bytes)
            if flow_id is not None:
                self._timeline.flow("t", flow_id, "link", start_ns)

    def crossed(self) -> Chunk | None:
        if self._flights and self._flights[0].end_ns <= time.monotonic_ns():
            return self._flights.popleft().chunk
        return None

    def arm(self) -> None:
        self._alarm.set(self._flights[0].end_ns if self._flights else None)

    def rest(self) -> None:
        pass  # whoever waits is told by the thread that drives this link

    def close(self, timeout_s: float) -> None:
        self._alarm.close()
