"""The OpenAI-compatible routes below /v1: chat, completions, and the list of the one model."""

import secrets
import time
from collections.abc import Callable

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from launch.server import bodies
from launch.server.answers import Shape
from launch.server.delivery import Delivery
from launch.server.refusals import Refusal
from launch.server.state import ServerState

MAX_BODY_BYTES = 16 * 2**20


def openai_router(state: ServerState) -> APIRouter:
    """The routes, bound to `state`."""
    router = APIRouter(prefix="/v1")
    started = int(time.time())

    @router.post("/chat/completions")
    async def chat(request: Request) -> Response:
        return await _deliver(state, request, bodies.chat_request, is_chat=True)

    @router.post("/completions")
    async def completions(request: Request) -> Response:
        return await _deliver(state, request, bodies.completion_request, is_chat=False)

    def described() -> dict[str, object]:
        return {
            "id": state.model,
            "object": "model",
            "created": started,
            "owned_by": "sidestage",
            "max_model_len": state.line.loaded.context if state.line.loaded else None,
        }

    @router.get("/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [described()]})

    @router.get("/models/{name:path}")
    async def model(name: str) -> Response:
        state.check_model(name)
        return JSONResponse(described())

    return router


async def _deliver(
    state: ServerState, request: Request, read: Callable[[bodies.Body], bodies.Request], *, is_chat: bool
) -> Response:
    asked = read(bodies.parse(await _body(request)))
    state.check_model(asked.model)
    shape = Shape(
        is_chat=is_chat,
        id=f"{'chatcmpl' if is_chat else 'cmpl'}-{secrets.token_hex(12)}",
        created=int(time.time()),
        model=state.model,
        fingerprint=state.fingerprint,
        includes_usage=asked.includes_usage,
    )
    return Delivery(state.line, asked.ask, shape, asked.is_streamed)


async def _body(request: Request) -> bytes:
    """The whole body, as far as it may go."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY_BYTES:
            raise Refusal(413, f"the request's body is larger than {MAX_BODY_BYTES >> 20} MiB: send less")
    return bytes(data)
