"""The entry: the first to see a request and the last to see its answer.

Checks the key, writes one log line for each request, counts it, and answers what no route takes
in OpenAI's error shape. Knows no model.
"""

import hmac
import logging
import time
from collections.abc import MutableMapping

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from launch.server.metrics import Metrics
from launch.server.refusals import Refusal

#: For a page without figures of its own, and for whoever watches over the server.
OPEN_PATHS = frozenset({"/", "/health"})
#: What nginx calls it: the client went before there was an answer.
CLIENT_LEFT = 499

_NO_ANSWER = 500

_log = logging.getLogger("sidestage")


class Entry:
    """ASGI middleware around the whole app. `api_key` None: everybody may come in."""

    def __init__(self, app: ASGIApp, api_key: str | None, metrics: Metrics) -> None:
        self._app = app
        self._api_key = api_key
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.monotonic()
        status = _NO_ANSWER

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if self._may_enter(scope):
                await self._app(scope, receive, note_status)
            else:
                await as_response(_wrong_key())(scope, receive, note_status)
        finally:
            self._note(scope, status, time.monotonic() - started_s)

    def _may_enter(self, scope: Scope) -> bool:
        if self._api_key is None or scope["path"] in OPEN_PATHS:
            return True
        given = Request(scope).headers.get("authorization", "")
        return hmac.compare_digest(given.encode(), f"Bearer {self._api_key}".encode())

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("route")
        self._metrics.requests.labels(getattr(route, "path", "other"), str(status)).inc()
        client = scope["client"][0] if scope.get("client") else "-"
        said: MutableMapping[str, object] = scope.get("state", {})
        note = f", {said['note']}" if said.get("note") else ""
        path = ascii(scope["path"])[1:-1]
        _log.info("%s %s %s %d, %.2f s%s", client, scope["method"], path, status, seconds, note)


def note(scope: Scope, text: str) -> None:
    """Add `text` to this request's log line."""
    scope.setdefault("state", {})["note"] = text


def as_response(refusal: Refusal) -> JSONResponse:
    """A refusal as its client reads it."""
    return JSONResponse(refusal.body, refusal.status, refusal.headers)


def shape_errors(app: FastAPI) -> None:
    """From now on whatever `app` refuses has OpenAI's error shape."""
    app.add_exception_handler(Refusal, _on_refusal)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_wrong_parameter)
    app.add_exception_handler(Exception, _on_crash)


def _wrong_key() -> Refusal:
    return Refusal(
        401,
        "the API key is missing or wrong: send the header `Authorization: Bearer KEY`",
        code="invalid_api_key",
    )


async def _on_refusal(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal)
    note(request.scope, error.text)
    return as_response(error)


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}"
    sentences = {
        404: f"there is nothing at {what}: the API is below /v1, its model at /v1/models",
        405: f"{what} is not allowed: try another method",
    }
    refusal = Refusal(error.status_code, sentences.get(error.status_code, str(error.detail)))
    answer = as_response(refusal)
    answer.headers.update(error.headers or {})
    return answer


async def _on_wrong_parameter(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    return as_response(Refusal(422, f"{name}: {first['msg']}", param=name))


async def _on_crash(request: Request, error: Exception) -> JSONResponse:
    return as_response(Refusal(500, f"the server failed: {type(error).__name__}: {error}"))
