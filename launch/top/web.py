"""The live view as a web page: `/` is the page, `/v1/sidestage/live` the figures that it polls.

Looks at the loader as `sidestage top` does, when somebody asks and no oftener than a few times a
second, however many pages are open. Knows no model and no requests: the server tells of those.
"""

import asyncio
import threading
from collections.abc import Mapping
from importlib.resources import files
from typing import Protocol

from fastapi import APIRouter
from starlette.responses import HTMLResponse, JSONResponse, Response

from launch.top.history import History
from protocol.errors import SidestageError

LIVE_PATH = "/v1/sidestage/live"
#: A page asks again soon; a loader that needs longer is told to be busy.
_TIMEOUT_S = 2.0
#: The page has everything in itself, and a browser shall see to it that it stays so.
_PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src data:; "
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'",
}


class Watched(Protocol):
    """The server that the page belongs to. `endpoint` is its loader's, None before there is one."""

    @property
    def endpoint(self) -> str | None: ...

    async def live(self) -> Mapping[str, object]:
        """The server's own figures."""


def live_router(watched: Watched) -> APIRouter:
    """The routes, bound to `watched`."""
    window = _Window()
    router = APIRouter()
    page = files("launch.top").joinpath("page.html").read_text(encoding="utf-8")

    @router.get("/", include_in_schema=False)
    async def root() -> Response:
        return HTMLResponse(page, headers=_PAGE_HEADERS)

    @router.get(LIVE_PATH)
    async def live() -> Response:
        """`server`: its own figures; `scene`: the loader and its clients, or null with a `problem`."""
        scene, problem = await asyncio.to_thread(window.look, watched.endpoint)
        told = {"server": dict(await watched.live()), "scene": scene, "problem": problem}
        return JSONResponse(told, headers={"Cache-Control": "no-store"})

    return router


class _Window:
    """One history for all who ask, of the loader at whatever endpoint it has now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._endpoint: str | None = None
        self._history: History | None = None

    def look(self, endpoint: str | None) -> tuple[Mapping[str, object] | None, str]:
        """(scene, "") or (None, the reason why there is none)."""
        if endpoint is None:
            return None, "the loader is not there yet"
        with self._lock:
            try:
                return self._history_of(endpoint).scene().as_json(), ""
            except (SidestageError, OSError) as error:
                return None, str(error)

    def _history_of(self, endpoint: str) -> History:
        if self._history is None or self._endpoint != endpoint:
            if self._history is not None:
                self._history.close()
            self._history, self._endpoint = None, endpoint
            self._history = History(endpoint, _TIMEOUT_S)
        return self._history
