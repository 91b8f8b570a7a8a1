"""The front: the HTTP side of the server, an event loop in a thread of its own.

Owns the thread and its end. The supervisor's thread starts it, tells it to stop, and asks whether
it has come to rest; everything else happens on the loop.
"""

import asyncio
import socket
import threading
from typing import Self

import uvicorn
from fastapi import FastAPI

from launch.server.line import Line

#: How long answers that have been made may take to reach their clients.
_GRACE_S = 5
_JOIN_S = 10.0


class Front:
    """Serves `app` at `listener` and `line` over `compute`, both sockets its own. A context manager."""

    def __init__(self, app: FastAPI, line: Line, listener: socket.socket, compute: socket.socket) -> None:
        self._line = line
        self._listener = listener
        self._compute = compute
        self._loop = asyncio.new_event_loop()
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def drain(self) -> None:
        """Take no more requests; those under way may end."""
        self._loop.call_soon_threadsafe(self._line.stop)

    def hang_up(self) -> None:
        """Nothing more is asked of compute: it ends, with its last report."""
        self._loop.call_soon_threadsafe(self._line.hang_up)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        """Finish what is on its way to clients, unless something went wrong; then end the thread."""
        self._server.force_exit = kind is not None
        self._server.should_exit = True
        self._thread.join(_JOIN_S)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        """Ends when it is told to, or when the way to compute fails by a fault of ours."""
        async with asyncio.TaskGroup() as tasks:
            hearing = tasks.create_task(self._line.listen(self._compute))
            await self._server.serve(sockets=[self._listener])
            hearing.cancel()
