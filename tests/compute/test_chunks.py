"""The chunk queue: order, the limit of two in flight, promotion and cancellation."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from compute.transports.chunks import Chunk, ChunkQueue, Progress


def finish_all(queue: ChunkQueue) -> list[Chunk]:
    """Send everything, one chunk at a time; the chunks in the order they were started."""
    sent = []
    while (chunk := queue.start()) is not None:
        sent.append(chunk)
        queue.finish(chunk)
    return sent


def test_a_blob_is_cut_into_chunks_that_cover_it_once() -> None:
    queue = ChunkQueue(chunk_bytes=400)
    queue.add(7, 1000, is_demand=True, deadline=0)
    assert finish_all(queue) == [Chunk(7, 0, 400), Chunk(7, 400, 800), Chunk(7, 800, 1000)]
    assert len(queue) == 0


def test_at_most_two_chunks_are_in_flight() -> None:
    queue = ChunkQueue(chunk_bytes=100)
    queue.add(1, 1000, is_demand=True, deadline=0)
    first, second = queue.start(), queue.start()
    assert first and second and queue.start() is None
    queue.finish(first)
    assert queue.start() == Chunk(1, 200, 300)


def test_demand_overtakes_a_prefetch_that_is_half_across() -> None:
    queue = ChunkQueue(chunk_bytes=100, max_in_flight=1)
    queue.add(1, 300, is_demand=False, deadline=5)
    started = queue.start()
    assert started == Chunk(1, 0, 100)
    queue.add(2, 200, is_demand=True, deadline=9)
    queue.finish(started)
    assert [chunk.job for chunk in finish_all(queue)] == [2, 2, 1, 1]


def test_among_prefetches_the_earliest_deadline_goes_first() -> None:
    queue = ChunkQueue(chunk_bytes=100)
    for job, deadline in [(1, 30), (2, 10), (3, 20)]:
        queue.add(job, 100, is_demand=False, deadline=deadline)
    assert [chunk.job for chunk in finish_all(queue)] == [2, 3, 1]


def test_a_promoted_prefetch_goes_with_the_demands() -> None:
    queue = ChunkQueue(chunk_bytes=100)
    queue.add(1, 100, is_demand=False, deadline=1)
    queue.add(2, 100, is_demand=False, deadline=2)
    queue.promote(2, deadline=0)
    assert [chunk.job for chunk in finish_all(queue)] == [2, 1]


def test_cancelling_a_job_that_has_not_started_ends_it_at_once() -> None:
    queue = ChunkQueue(chunk_bytes=100)
    queue.add(1, 100, is_demand=False, deadline=1)
    assert queue.cancel(1)
    assert queue.start() is None and len(queue) == 0


def test_cancelling_a_job_in_flight_drops_it_with_its_last_chunk_in_flight() -> None:
    queue = ChunkQueue(chunk_bytes=100)
    queue.add(1, 500, is_demand=False, deadline=1)
    first, second = queue.start(), queue.start()
    assert first and second
    assert not queue.cancel(1)
    assert queue.finish(first) is Progress.PARTLY
    assert queue.finish(second) is Progress.DROPPED
    assert queue.start() is None


def test_cancelling_comes_too_late_when_every_chunk_is_in_flight() -> None:
    queue = ChunkQueue(chunk_bytes=100)
    queue.add(1, 100, is_demand=False, deadline=1)
    chunk = queue.start()
    assert chunk and not queue.cancel(1)
    assert queue.finish(chunk) is Progress.WHOLE


def test_promoting_a_cancelled_job_lets_it_live_on() -> None:
    queue = ChunkQueue(chunk_bytes=100)
    queue.add(1, 300, is_demand=False, deadline=1)
    chunk = queue.start()
    assert chunk and not queue.cancel(1)
    queue.promote(1, deadline=0)
    assert queue.finish(chunk) is Progress.PARTLY
    assert [c.start for c in finish_all(queue)] == [100, 200]


def test_a_number_may_be_used_again_once_its_job_has_ended() -> None:
    queue = ChunkQueue(chunk_bytes=100)
    queue.add(1, 100, is_demand=True, deadline=0)
    queue.cancel(1)
    queue.add(1, 200, is_demand=False, deadline=7)
    assert finish_all(queue) == [Chunk(1, 0, 100), Chunk(1, 100, 200)]


@pytest.mark.parametrize(("chunk_bytes", "in_flight"), [(0, 2), (100, 0)])
def test_a_size_of_zero_is_refused(chunk_bytes: int, in_flight: int) -> None:
    with pytest.raises(ValueError, match="above 0"):
        ChunkQueue(chunk_bytes, in_flight)


class AnyOrderOfEvents(RuleBasedStateMachine):
    """The queue against a plain model: jobs with their bytes, wishes and what has crossed."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = ChunkQueue(chunk_bytes=64)
        self.sizes: dict[int, int] = {}
        self.wishes: dict[int, tuple[bool, int]] = {}
        self.crossed: Counter[int] = Counter()
        self.started: Counter[int] = Counter()
        self.in_flight: list[Chunk] = []
        self.is_cancelled: set[int] = set()
        self.next_job = 0

    @rule(size=st.integers(1, 400), is_demand=st.booleans(), deadline=st.integers(0, 9))
    def add(self, size: int, is_demand: bool, deadline: int) -> None:
        job, self.next_job = self.next_job, self.next_job + 1
        self.queue.add(job, size, is_demand=is_demand, deadline=deadline)
        self.sizes[job] = size
        self.wishes[job] = (not is_demand, deadline)

    @rule()
    def start(self) -> None:
        candidates = [job for job in self.sizes if self._can_start(job)]
        chunk = self.queue.start()
        if len(self.in_flight) == 2 or not candidates:
            assert chunk is None
            return
        assert chunk is not None
        assert self.wishes[chunk.job] == min(self.wishes[job] for job in candidates)
        assert chunk.start == self.started[chunk.job] and 0 < chunk.num_bytes <= 64
        self.started[chunk.job] = chunk.end
        self.in_flight.append(chunk)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        chunk = data.draw(st.sampled_from(self.in_flight))
        self.in_flight.remove(chunk)
        self.crossed[chunk.job] += chunk.num_bytes
        progress = self.queue.finish(chunk)
        is_last = all(other.job != chunk.job for other in self.in_flight)
        is_whole = self.crossed[chunk.job] == self.sizes[chunk.job]
        assert (progress is Progress.WHOLE) == is_whole
        assert (progress is Progress.DROPPED) == (is_last and not is_whole and chunk.job in self.is_cancelled)
        if progress is not Progress.PARTLY:
            self._forget(chunk.job)

    @precondition(lambda self: self.sizes)
    @rule(data=st.data(), deadline=st.integers(0, 9))
    def promote(self, data: st.DataObject, deadline: int) -> None:
        job = data.draw(st.sampled_from(sorted(self.sizes)))
        self.queue.promote(job, deadline)
        self.wishes[job] = (False, deadline)
        self.is_cancelled.discard(job)

    @precondition(lambda self: self.sizes)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(sorted(self.sizes)))
        is_too_late = self.started[job] == self.sizes[job]
        is_over = self.queue.cancel(job)
        assert is_over == (not is_too_late and all(chunk.job != job for chunk in self.in_flight))
        if is_over:
            self._forget(job)
        elif not is_too_late:
            self.is_cancelled.add(job)

    @invariant()
    def never_more_than_two_in_flight(self) -> None:
        assert self.queue.num_in_flight == len(self.in_flight) <= 2

    @invariant()
    def knows_exactly_the_jobs_that_have_not_ended(self) -> None:
        assert len(self.queue) == len(self.sizes)
        assert all(job in self.queue for job in self.sizes)

    def teardown(self) -> None:
        """Whatever was not cancelled crosses whole, each byte once."""
        while self.in_flight or any(self._can_start(job) for job in self.sizes):
            self.start()
            chunk = self.in_flight.pop(0)
            self.crossed[chunk.job] += chunk.num_bytes
            if self.queue.finish(chunk) is Progress.WHOLE:
                assert self.crossed[chunk.job] == self.sizes[chunk.job]
                self._forget(chunk.job)
        assert all(job in self.is_cancelled for job in self.sizes)

    def _can_start(self, job: int) -> bool:
        return job not in self.is_cancelled and self.started[job] < self.sizes[job]

    def _forget(self, job: int) -> None:
        del self.sizes[job], self.wishes[job]
        self.is_cancelled.discard(job)


AnyOrderOfEvents.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyOrderOfEvents = AnyOrderOfEvents.TestCase
