"""What goes between a chat and its compute process: one JSON object a line, over one socket.

To compute: {"messages": [...]}. From it: {"ready": {...}} once, then for each question
{"text": "..."} as often as there is some, and at last {"done": {...}} or {"refused": "sentence"}.
"""

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

_CHUNK_BYTES = 65536


class Line:
    """One end of the socket. A partner who has gone is the end of what is received, never an error."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._rest = b""

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, **what: object) -> bool:
        """False: nobody is there any more."""
        try:
            self._end.sendall(json.dumps(what).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def receive(self) -> Iterator[dict[str, Any]]:
        """What has arrived, after waiting for some of it; nothing at the end."""
        try:
            part = self._end.recv(_CHUNK_BYTES)
        except ConnectionResetError:
            return
        *whole, self._rest = (self._rest + part).split(b"\n")
        for line in whole:
            yield json.loads(line)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Everything until the partner hangs up."""
        with contextlib.suppress(ConnectionResetError), self._end.makefile("rb") as lines:
            for line in lines:
                yield json.loads(line)

    def hang_up(self) -> None:
        """Say no more; the partner may still."""
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._end.close()
