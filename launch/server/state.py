"""What the server is, right now: the one object that every route is given.

Owned by the HTTP side; the supervisor's thread only sets `loader` and asks. Knows no HTTP.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from launch.server.line import Line
from launch.server.metrics import Metrics
from launch.server.refusals import Refusal


class Loader(Protocol):
    """The loader that the supervisor keeps alive."""

    @property
    def is_alive(self) -> bool: ...

    @property
    def num_restarts(self) -> int: ...


@dataclass(slots=True)
class ServerState:
    """`model` is what clients call the model; `loader` None: not started yet, or somebody else's.

    `endpoint` is the loader's, for whoever wants to look at it; None before there is one.
    """

    model: str
    line: Line
    metrics: Metrics
    loader: Loader | None = None
    endpoint: str | None = None

    @property
    def status(self) -> str:
        """ready, loading, restarting (the loader has died and its successor comes up) or stopping."""
        if self.line.is_stopping:
            return "stopping"
        if self.line.loaded is None:
            return "loading"
        return "ready" if self.loader is None or self.loader.is_alive else "restarting"

    @property
    def fingerprint(self) -> str:
        """Names model and weights, for `system_fingerprint`."""
        return self.line.loaded.fingerprint if self.line.loaded else ""

    def check_model(self, name: str) -> None:
        """Raise Refusal unless `name` is the model that is served, or "" for whichever is."""
        if name not in ("", self.model):
            text = f"the model {name!r} is not served here: ask for {self.model!r}"
            raise Refusal(404, text, param="model", code="model_not_found")

    async def live(self) -> Mapping[str, object]:
        """The server's own figures, and compute's report as `experts`: all that a live view needs."""
        experts = await self.line.figures()
        return {
            "status": self.status,
            "model": self.model,
            "endpoint": self.endpoint,
            "loader_restarts": self.loader.num_restarts if self.loader else 0,
            "running": self.line.num_running,
            "waiting": self.line.num_waiting,
            "totals": self.metrics.totals,
            "experts": experts,
        }
