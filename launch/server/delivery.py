"""Delivery: one request's way through the line, and its answer to the client, whole or as a stream.

One coroutine from the request's entrance to its end, so that whatever happens the line is told. A
client that goes cancels its answer.
"""

import asyncio

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from launch.server.answers import Shape, as_event
from launch.server.entry import CLIENT_LEFT, as_response, note
from launch.server.line import Flow, Line
from launch.server.messages import Ask, Began, Ended, Piece
from launch.server.refusals import Refusal

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Delivery(Response):
    """Answers `ask` in `shape`. Made by a route, and run by the server as any other response."""

    def __init__(self, line: Line, ask: Ask, shape: Shape, is_streamed: bool) -> None:
        super().__init__()
        self._line = line
        self._ask = ask
        self._shape = shape
        self._is_streamed = is_streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            flow = self._line.enter(self._ask)
            watch = asyncio.create_task(_leave_with_client(receive, self._line, flow))
            try:
                deliver = self._stream if self._is_streamed else self._whole
                await deliver(flow, scope, receive, send)
                note(scope, describe(flow))
            finally:
                watch.cancel()
                self._line.leave(flow)
        except Refusal as refusal:
            note(scope, refusal.text)
            await as_response(refusal)(scope, receive, send)

    async def _whole(self, flow: Flow, scope: Scope, receive: Receive, send: Send) -> None:
        while not isinstance(event := await flow.next(), Ended):
            if isinstance(event, Piece):
                self._shape.add(event)
        answer = Response(status_code=CLIENT_LEFT)
        if event.reason != "cancelled":
            answer = JSONResponse(self._shape.whole(event))
        await answer(scope, receive, send)

    async def _stream(self, flow: Flow, scope: Scope, receive: Receive, send: Send) -> None:
        """A refusal before the first byte is an answer with a status; after it, the stream's last event."""
        event = await flow.next()
        await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
        try:
            while not isinstance(event, Ended):
                await _send_part(send, self._part(event))
                event = await flow.next()
            last = b"" if event.reason == "cancelled" else self._shape.closing(event)
        except Refusal as refusal:
            last = as_event(refusal.body)
        await send({"type": "http.response.body", "body": last})

    def _part(self, event: Began | Piece) -> bytes:
        return self._shape.opening() if isinstance(event, Began) else self._shape.chunk(event)


async def _send_part(send: Send, part: bytes) -> None:
    if part:
        await send({"type": "http.response.body", "body": part, "more_body": True})


async def _leave_with_client(receive: Receive, line: Line, flow: Flow) -> None:
    """Leave the line when the client goes."""
    while (await receive())["type"] != "http.disconnect":
        pass
    line.leave(flow)


def describe(flow: Flow) -> str:
    """What became of a request, for its log line."""
    if not isinstance(flow.end, Ended):
        return flow.end.text if flow.end else "no end"
    words = [f"{flow.end.prompt_tokens} + {flow.end.new_tokens} tok"]
    if flow.began_s is not None and flow.began_s - flow.arrived_s > 0.01:
        words.append(f"waited {flow.began_s - flow.arrived_s:.2f} s")
    if flow.first_s is not None:
        words.append(f"first after {flow.first_s - flow.arrived_s:.2f} s")
    if seconds := flow.seconds_per_token:
        words.append(f"{1 / seconds:.1f} tok/s")
    return ", ".join([*words, "the client left" if flow.end.reason == "cancelled" else flow.end.reason])
