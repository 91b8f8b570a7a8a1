"""The routes for those who watch over the server: /health and /metrics."""

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from launch.server.metrics import CONTENT_TYPE
from launch.server.state import ServerState


def probes_router(state: ServerState) -> APIRouter:
    """The routes, bound to `state`."""
    router = APIRouter()
    state.metrics.watch(lambda: _figures(state))

    @router.get("/health")
    async def health() -> Response:
        """200 when answers are made without delay, 503 while the model loads or the loader is replaced."""
        status = state.status
        return JSONResponse({"status": status, "model": state.model}, 200 if status == "ready" else 503)

    @router.get("/metrics")
    async def metrics() -> Response:
        await state.line.figures()
        return Response(state.metrics.text(), media_type=CONTENT_TYPE)

    return router


def _figures(state: ServerState) -> dict[str, object]:
    return {
        **state.line.report,
        "running": state.line.num_running,
        "waiting": state.line.num_waiting,
        "loader_restarts": state.loader.num_restarts if state.loader else 0,
    }
