"""The line: every request from its arrival to its end, and the way to the compute process.

Lives on the HTTP side's event loop. Bounded: whoever would wait behind too many is refused. Knows
nothing of HTTP; what a request's client is told goes through its Flow.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import replace

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
    Report,
    from_line,
    to_line,
)
from launch.server.refusals import Refusal

#: How long a look at the figures waits for a compute process that waits for its loader.
FIGURES_TIMEOUT_S = 2.0

_MAX_LINE_BYTES = 2**24
_STOPPING = "the server is stopping: ask again once it runs again"
_LOST = "the compute process has ended: the server stops, its log says why"


class Flow:
    """One request's events in order, and when they came (seconds, monotonic)."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.arrived_s = time.monotonic()
        self.began_s: float | None = None
        self.first_s: float | None = None
        self.last_s = self.arrived_s
        self.end: Ended | Declined | None = None
        self._events: asyncio.Queue[Began | Piece | Ended | Declined] = asyncio.Queue()

    @property
    def seconds_per_token(self) -> float | None:
        """Decode only: the first token is prefill's. None with fewer than two tokens, or without an end."""
        if self.first_s is None or not isinstance(self.end, Ended) or self.end.new_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.end.new_tokens - 1)

    async def next(self) -> Began | Piece | Ended:
        """The next event; nothing follows an Ended. Raises Refusal when there will be no answer."""
        event = await self._events.get()
        if isinstance(event, Declined):
            raise Refusal(event.status, event.text, param=event.param, code=event.code)
        return event

    def put(self, event: Began | Piece | Ended | Declined) -> None:
        """What compute says; nothing counts after the end."""
        if self.end:
            return
        self.last_s = time.monotonic()
        match event:
            case Began():
                self.began_s = self.last_s
            case Piece():
                self.first_s = self.first_s or self.last_s
            case Ended() | Declined():
                self.end = event
        self._events.put_nowait(event)


class Line:
    """At most `num_at_once` requests are answered and `num_waiting` wait; `on_end` sees each flow's end."""

    def __init__(self, num_at_once: int, num_waiting: int, on_end: Callable[[Flow], None]) -> None:
        self.loaded: Loaded | None = None
        #: The last figures that compute told.
        self.report: Report = {}
        self.is_stopping = False
        self._num_at_once = num_at_once
        self._max_waiting = num_waiting
        self._on_end = on_end
        self._flows: dict[int, Flow] = {}
        self._number = 0
        self._is_lost = False
        self._told = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None

    @property
    def num_requests(self) -> int:
        """Requests that have not ended in the compute process."""
        return len(self._flows)

    @property
    def num_running(self) -> int:
        return sum(flow.began_s is not None for flow in self._flows.values())

    @property
    def num_waiting(self) -> int:
        return self.num_requests - self.num_running

    # --- for the HTTP side ---------------------------------------------------------------------

    def enter(self, ask: Ask) -> Flow:
        """Send a request on its way; `leave` must follow. Raises Refusal when it cannot be taken."""
        if self.loaded is None or self.is_stopping or self._is_lost:
            raise Refusal(503, self._why_not())
        limit = self._num_at_once + self._max_waiting
        if self.num_requests >= limit:
            raise Refusal(
                429,
                f"{self.num_requests} requests are being answered or wait, which is all that --queue "
                f"{self._max_waiting} allows: ask again later",
                code="queue_full",
            )
        self._number += 1
        flow = self._flows[self._number] = Flow(replace(ask, number=self._number))
        self._send(flow.ask)
        return flow

    def leave(self, flow: Flow) -> None:
        """The client needs nothing more: an answer that has not ended is cancelled. Idempotent."""
        if flow.end is None:
            self._send(Cancel(flow.ask.number))

    async def figures(self) -> Report:
        """What cache, prefetcher and link did so far: asked now; the last known if nobody answers."""
        if self.loaded and not self._is_lost:
            self._told.clear()
            self._send(Inquire())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), FIGURES_TIMEOUT_S)
        return self.report

    def stop(self) -> None:
        """Take no more requests; those that wait are refused, those under way may end."""
        self.is_stopping = True
        for flow in self._flows.values():
            if flow.began_s is None:
                self._send(Cancel(flow.ask.number))
                flow.put(Declined(flow.ask.number, 503, _STOPPING, None, None))

    def hang_up(self) -> None:
        """Let compute end; it still answers what it was asked."""
        if self._writer and self._writer.can_write_eof():
            self._writer.write_eof()

    def _why_not(self) -> str:
        if self._is_lost:
            return _LOST
        return (
            _STOPPING if self.is_stopping else "the model is still loading: GET /health says when it is ready"
        )

    # --- the way to compute --------------------------------------------------------------------

    async def listen(self, compute: socket.socket) -> None:
        """Pass on what compute says until it hangs up; closes the socket."""
        reader, self._writer = await asyncio.open_unix_connection(sock=compute, limit=_MAX_LINE_BYTES)
        try:
            while line := await reader.readline():
                self._hear(from_line(line))
        except ConnectionResetError:
            pass  # it was killed, which is one way to hang up
        finally:
            self._writer.close()
            self._lose()

    def _send(self, order: Order) -> None:
        if self._writer and not self._is_lost:
            self._writer.write(to_line(order))

    def _hear(self, event: Order | Event) -> None:
        match event:
            case Loaded():
                self.loaded = event
            case Figures(report=report):
                self.report = report
                self._told.set()
            case Began() | Piece():
                self._flows[event.number].put(event)
            case Ended() | Declined():
                self._end(self._flows.pop(event.number), event)

    def _end(self, flow: Flow, event: Ended | Declined) -> None:
        flow.put(event)
        self._on_end(flow)

    def _lose(self) -> None:
        """Compute has hung up: nobody gets an answer any more."""
        self._is_lost = True
        self._told.set()
        while self._flows:
            number, flow = self._flows.popitem()
            self._end(flow, Declined(number, 503, _LOST, None, None))
