"""The chunk queue: which piece of which blob crosses the link next.

A copy engine is first in, first out and blind to priority, so priority lives here: at most two
chunks are in flight, and everything else waits where it can still be overtaken, promoted or
cancelled. Demand goes before prefetch, then the earliest deadline, then the first come.
Pure: it knows jobs by number and sizes in bytes; no clock, no memory, no device.
"""

from dataclasses import dataclass
from enum import Enum

from compute.transports.urgency import UrgencyQueue

MAX_IN_FLIGHT = 2


class Progress(Enum):
    """What a finished chunk means for its job."""

    PARTLY = "partly"
    WHOLE = "whole"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes `start` to `end` of the blob of `job`."""

    job: int
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.start


@dataclass(slots=True)
class _Job:
    """A blob on its way."""

    num_bytes: int
    started_bytes: int = 0
    in_flight: int = 0
    is_cancelled: bool = False

    @property
    def is_started_whole(self) -> bool:
        return self.started_bytes == self.num_bytes


class ChunkQueue:
    """Jobs of `num_bytes` each, cut in chunks of at most `chunk_bytes`.

    A job's life: `add`, then chunks by `start` and `finish` until `finish` says WHOLE; or
    `cancel`, after which it ends at once or with its last chunk in flight (DROPPED).
    A job's number may be used again once it has ended.
    """

    def __init__(self, chunk_bytes: int, max_in_flight: int = MAX_IN_FLIGHT) -> None:
        if chunk_bytes <= 0 or max_in_flight <= 0:
            raise ValueError(f"{max_in_flight} chunks of {chunk_bytes} bytes in flight; both must be above 0")
        self.chunk_bytes = chunk_bytes
        self.max_in_flight = max_in_flight
        self.num_in_flight = 0
        self._jobs: dict[int, _Job] = {}
        #: Jobs with a chunk to start.
        self._due = UrgencyQueue()

    def __len__(self) -> int:
        """Jobs that have not ended."""
        return len(self._jobs)

    def __contains__(self, job: int) -> bool:
        return job in self._jobs

    def add(self, job: int, num_bytes: int, *, is_demand: bool, deadline: int) -> None:
        """Queue a blob. `deadline` is the layer-step that needs it."""
        assert job not in self._jobs and num_bytes > 0, (job, num_bytes)
        self._jobs[job] = _Job(num_bytes)
        self._due.add(job, is_demand=is_demand, deadline=deadline)

    def promote(self, job: int, deadline: int) -> None:
        """It is needed now. A job that was cancelled but has not ended lives on."""
        entry = self._jobs.get(job)
        if entry is None or entry.is_started_whole:
            return
        entry.is_cancelled = False
        self._due.add(job, is_demand=True, deadline=deadline)

    def cancel(self, job: int) -> bool:
        """Drop what has not been started. True: the job ended here and now.

        A job of which every chunk is in flight already will end WHOLE all the same.
        """
        entry = self._jobs.get(job)
        if entry is None or entry.is_started_whole:
            return False
        self._due.remove(job)
        entry.is_cancelled = True
        if entry.in_flight:
            return False
        del self._jobs[job]
        return True

    def start(self) -> Chunk | None:
        """The chunk to send next, now in flight. None when there is none or two are in flight."""
        job = self._due.first()
        if job is None or self.num_in_flight >= self.max_in_flight:
            return None
        entry = self._jobs[job]
        chunk = Chunk(job, entry.started_bytes, min(entry.started_bytes + self.chunk_bytes, entry.num_bytes))
        entry.started_bytes = chunk.end
        entry.in_flight += 1
        self.num_in_flight += 1
        if entry.is_started_whole:
            self._due.remove(job)
        return chunk

    def finish(self, chunk: Chunk) -> Progress:
        """The chunk's bytes have crossed."""
        entry = self._jobs[chunk.job]
        entry.in_flight -= 1
        self.num_in_flight -= 1
        if entry.in_flight:
            return Progress.PARTLY
        if entry.is_started_whole:
            del self._jobs[chunk.job]
            return Progress.WHOLE
        if entry.is_cancelled:
            del self._jobs[chunk.job]
            return Progress.DROPPED
        return Progress.PARTLY
