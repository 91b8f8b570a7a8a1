"""The line between clients and the compute process, with a compute process that says what a test wants."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from launch.server.line import Flow, Line
from launch.server.messages import (
    Ask,
    Began,
    Cancel,
    Declined,
    Ended,
    Event,
    Figures,
    Inquire,
    Loaded,
    Order,
    Piece,
    from_line,
    to_line,
)
from launch.server.refusals import Refusal

ASK = Ask(0, "Once", None, 4, None, None, None, None, None, [], None)


class FakeCompute:
    """The other end of the line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def order(self) -> Order | Event:
        return from_line(await asyncio.wait_for(self._reader.readline(), 5))

    def say(self, event: Event) -> None:
        self._writer.write(to_line(event))

    def die(self) -> None:
        self._writer.close()


@asynccontextmanager
async def opened(line: Line) -> AsyncIterator[FakeCompute]:
    """A line whose model has been loaded."""
    ours, theirs = socket.socketpair()
    listening = asyncio.create_task(line.listen(ours))
    compute = FakeCompute(*await asyncio.open_unix_connection(sock=theirs))
    compute.say(Loaded("store", "fingerprint", 512))
    await until(lambda: line.loaded is not None)
    try:
        yield compute
    finally:
        compute.die()
        await asyncio.wait_for(listening, 5)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_so():
            await asyncio.sleep(0.001)


def played(play: Callable[[Line, FakeCompute], Awaitable[None]], ends: list[Flow] | None = None) -> None:
    """Run `play` with a line of one at once and one waiting."""
    line = Line(1, 1, (ends if ends is not None else []).append)

    async def run() -> None:
        async with opened(line) as compute:
            await play(line, compute)

    asyncio.run(run())


def test_a_flow_tells_what_compute_says_and_leaves_the_line_with_its_end() -> None:
    ends: list[Flow] = []

    async def play(line: Line, compute: FakeCompute) -> None:
        flow = line.enter(ASK)
        assert await compute.order() == flow.ask
        said = [Began(1, 3), Piece(1, "a", None), Ended(1, "stop", "", 3, 1)]
        for event in said:
            compute.say(event)
        assert [await flow.next() for _ in said] == said
        assert line.num_requests == 0
        assert ends == [flow]

    played(play, ends)


def test_nobody_enters_before_the_model_is_there() -> None:
    with pytest.raises(Refusal, match="still loading") as caught:
        Line(1, 1, lambda flow: None).enter(ASK)
    assert caught.value.status == 503


def test_a_full_line_refuses_until_somebody_ends() -> None:
    async def play(line: Line, compute: FakeCompute) -> None:
        line.enter(ASK)
        line.enter(ASK)
        with pytest.raises(Refusal, match="--queue 1") as caught:
            line.enter(ASK)
        assert caught.value.status == 429
        compute.say(Ended(1, "stop", "", 1, 1))
        await until(lambda: line.num_requests == 1)
        line.enter(ASK)

    played(play)


def test_who_leaves_is_cancelled_and_counts_until_compute_has_let_go() -> None:
    async def play(line: Line, compute: FakeCompute) -> None:
        flow = line.enter(ASK)
        await compute.order()
        line.leave(flow)
        assert await compute.order() == Cancel(1)
        assert line.num_requests == 1
        compute.say(Ended(1, "cancelled", "", 1, 0))
        await until(lambda: line.num_requests == 0)

    played(play)


def test_who_leaves_after_the_end_is_not_cancelled() -> None:
    async def play(line: Line, compute: FakeCompute) -> None:
        flow = line.enter(ASK)
        await compute.order()
        compute.say(Ended(1, "stop", "", 1, 1))
        await flow.next()
        line.leave(flow)
        asked = asyncio.create_task(line.figures())
        assert await compute.order() == Inquire()
        compute.say(Figures({"hits": 1}))
        await asked

    played(play)


def test_a_declined_request_is_a_refusal_with_compute_s_words() -> None:
    async def play(line: Line, compute: FakeCompute) -> None:
        flow = line.enter(ASK)
        compute.say(Declined(1, 400, "too long", "prompt", "context_length_exceeded"))
        with pytest.raises(Refusal, match="too long") as caught:
            await flow.next()
        assert (caught.value.status, caught.value.param) == (400, "prompt")

    played(play)


def test_a_line_that_stops_refuses_who_waits_and_keeps_who_is_answered() -> None:
    async def play(line: Line, compute: FakeCompute) -> None:
        answered, waiting = line.enter(ASK), line.enter(ASK)
        compute.say(Began(1, 1))
        await answered.next()
        line.stop()
        with pytest.raises(Refusal, match="is stopping"):
            await waiting.next()
        with pytest.raises(Refusal, match="is stopping"):
            line.enter(ASK)
        orders = [await compute.order() for _ in range(3)]
        assert orders[2] == Cancel(2)
        compute.say(Ended(1, "stop", "", 1, 1))
        assert await answered.next() == Ended(1, "stop", "", 1, 1)

    played(play)


def test_when_compute_dies_everybody_is_told() -> None:
    ends: list[Flow] = []

    async def play(line: Line, compute: FakeCompute) -> None:
        flow = line.enter(ASK)
        compute.die()
        with pytest.raises(Refusal, match="compute process has ended") as caught:
            await flow.next()
        assert caught.value.status == 503
        with pytest.raises(Refusal, match="compute process has ended"):
            line.enter(ASK)
        assert await line.figures() == {}
        assert ends == [flow]

    played(play, ends)


def test_figures_that_nobody_tells_in_time_are_the_last_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.server.line.FIGURES_TIMEOUT_S", 0.01)

    async def play(line: Line, compute: FakeCompute) -> None:
        compute.say(Figures({"hits": 7}))
        await until(lambda: bool(line.report))
        assert await line.figures() == {"hits": 7}

    played(play)
