"""The app: every route in one place. A further router is one more `include_router` here.

Routes get a ServerState and nothing else; nothing global.
"""

from fastapi import FastAPI

from launch.server.entry import Entry, shape_errors
from launch.server.probes import probes_router
from launch.server.routes import openai_router
from launch.server.state import ServerState
from launch.top.web import live_router


def make_app(state: ServerState, api_key: str | None) -> FastAPI:
    """The server's app. `api_key` None: everybody may ask."""
    app = FastAPI(title="sidestage", openapi_url=None, redirect_slashes=False)
    app.include_router(openai_router(state))
    app.include_router(probes_router(state))
    app.include_router(live_router(state))
    shape_errors(app)
    app.add_middleware(Entry, api_key=api_key, metrics=state.metrics)
    return app
