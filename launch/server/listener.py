"""The listening socket: bound before anything else, so that a wrong host or a busy port is told at once."""

import contextlib
import errno
import os
import socket

_BACKLOG = 256
_MAX_PORT = 65535


class UsageError(ValueError):
    """The command line asked for what cannot be: exit code 2."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at `host`:`port`. Raises UsageError with a sentence."""
    if not 0 <= port <= _MAX_PORT:
        raise UsageError(f"--port is {port}; allowed: 0 (a free one) to {_MAX_PORT}")
    if not host:
        raise UsageError("--host is empty; pass an address such as 127.0.0.1, or 0.0.0.0 for every one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError(
            f"--host {host} is no address of this machine ({error}): pass 127.0.0.1, or 0.0.0.0 for all"
        ) from None
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.socket(family, kind, protocol))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise UsageError(_sentence(host, port, error)) from None
        opened.pop_all()
        return listener


def url_of(listener: socket.socket) -> str:
    """Where a browser would go."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _sentence(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"--port {port} is in use at {host}: stop who uses it, or pass another port (0: a free one)"
            )
        case errno.EACCES:
            return f"--port {port} is not for this user: pass one from 1024 up"
        case errno.EADDRNOTAVAIL:
            return f"--host {host} is no address of this machine: pass 127.0.0.1, or 0.0.0.0 for all"
    return f"cannot listen at {host}:{port}: {os.strerror(error.errno or 0)}"
