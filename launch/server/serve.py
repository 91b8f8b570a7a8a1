"""`sidestage serve`: the supervisor of a server: front, loader and compute, and nothing left behind.

The port is bound first, so that /health answers while the rest starts. As with `run`, a loader
that dies is replaced; the first Ctrl-C lets the answers under way end, the second ends at once.
"""

import select
import socket
import sys
import time
from contextlib import ExitStack

from launch.compute_process import ComputeProcess
from launch.interrupts import Interrupts
from launch.keeper import Keeper
from launch.log import log_to_stderr
from launch.own_loader import own_loader
from launch.plan import Plan, plan_run
from launch.server.app import make_app
from launch.server.config import ServeConfig
from launch.server.front import Front
from launch.server.line import Line
from launch.server.listener import listen, url_of
from launch.server.metrics import Metrics
from launch.server.state import ServerState
from launch.summary import experts_shares
from protocol.errors import SidestageError

#: How often the loader, and a server that drains, are looked at.
_LOOK_S = 0.2


def serve_model(config: ServeConfig) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises UsageError, SidestageError or ValueError with a sentence."""
    log_to_stderr("%(asctime)s %(message)s")
    with ExitStack() as opened:
        listener = opened.enter_context(listen(config.host, config.port))
        url = url_of(listener)
        ours, theirs = socket.socketpair()
        opened.enter_context(theirs)
        metrics = Metrics()
        line = Line(config.batch, config.queue, metrics.note_end)
        state = ServerState(config.model_name, line, metrics, endpoint=config.run.connect)
        app = make_app(state, config.api_key)
        front = opened.enter_context(Front(app, line, listener, ours))
        _tell(f"{url} is open; /health says when the model is ready")
        plan = plan_run(config.run, prompt="")
        for sentence in (plan.headline, *plan.notices, *config.run.ignored(), *config.notices):
            _tell(sentence)
        report = _supervise(config, plan, theirs, Watched(front, state, url))
        totals = metrics.totals
        _tell(f"{_counted(totals['answers'])}, {totals['new_tokens']} tok, {experts_shares(report)}")


def _supervise(
    config: ServeConfig, plan: Plan, theirs: socket.socket, watched: "Watched"
) -> dict[str, object]:
    """Loader and compute, until the server has been drained; compute's last report."""
    with ExitStack() as opened:
        program = ("launch.server.answering", "--batch", str(config.batch))
        compute = opened.enter_context(ComputeProcess(theirs.fileno(), program))
        theirs.close()  # from now on its end is compute's end
        job, keeper = opened.enter_context(own_loader(plan.loader, plan.job, config.run.timeout))
        if keeper:
            watched.state.loader = keeper.loader
            watched.state.endpoint = keeper.loader.endpoint
        compute.send(job)
        with Interrupts() as interrupts:
            watched.watch(compute, interrupts, keeper)
        return compute.result()


class Watched:
    """A server that runs, as its supervisor sees it."""

    def __init__(self, front: Front, state: ServerState, url: str) -> None:
        self.state = state
        self._front = front
        self._url = url
        self._is_announced = False
        self._is_draining = False

    def watch(self, compute: ComputeProcess, interrupts: Interrupts, keeper: Keeper | None) -> None:
        """Until compute has answered. Raises KeyboardInterrupt when told twice to stop, or while loading."""
        while not compute.has_ended:
            ready, _, _ = select.select([compute.fileno(), interrupts.fileno()], [], [], _LOOK_S)
            if compute.fileno() in ready:
                compute.read()
            for _ in range(interrupts.taken() if interrupts.fileno() in ready else 0):
                self._interrupt()
            self._look()
            if keeper:
                keeper.look(time.monotonic())

    def _interrupt(self) -> None:
        if self._is_draining or self.state.line.loaded is None:
            raise KeyboardInterrupt
        self._is_draining = True
        num = self.state.line.num_running
        rest = "finished first; Ctrl-C again ends at once" if num else "nothing to finish"
        _tell(f"stopping: {_counted(num)} under way, {rest}")
        self._front.drain()

    def _look(self) -> None:
        line = self.state.line
        if not self._front.is_alive:
            raise SidestageError("the HTTP side of the server has failed: the lines above say how")
        if line.loaded and not self._is_announced:
            self._is_announced = True
            _tell(f"ready: {self._url}/v1 serves {self.state.model}; Ctrl-C stops")
        if line.is_stopping and not line.num_requests:
            self._front.hang_up()


def _counted(num_answers: int) -> str:
    return f"{num_answers} answer{'' if num_answers == 1 else 's'}"


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
