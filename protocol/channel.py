"""The bus: typed commands and events between clients and the loader, ZeroMQ DEALER/ROUTER on ipc.

Moves whole messages and nothing else: who may come in is the door's business, what a message
means is the service's. A full queue is kept and tried again, never dropped silently.
"""

import contextlib
import secrets
from collections import deque
from pathlib import Path
from typing import Self, TypeVar, get_args

import zmq

from protocol.codec import MAX_MESSAGE_BYTES, decode, encode
from protocol.errors import LoaderLostError, ProtocolError
from protocol.messages import Command, Event, Fault, Message

#: Messages that wait inside ZeroMQ for one peer before its sender has to wait.
QUEUE_LENGTH = 256
#: Events kept for one client that does not read, beyond ZeroMQ's own queue.
MAX_BACKLOG = 4096

#: A socket that nobody closed must not keep its process from ending.
_LINGER_MS = 1000

_COMMANDS: tuple[type[Command], ...] = get_args(Command)
_EVENTS: tuple[type[Event], ...] = get_args(Event)
_T = TypeVar("_T")


def new_identity() -> bytes:
    """16 random bytes to name a client on the bus; ZeroMQ keeps those that start with zero to itself."""
    return b"\x01" + secrets.token_bytes(15)


class BusServer:
    """The loader's end. Only identities that were admitted are heard; use it from one thread."""

    def __init__(self, path: Path) -> None:
        """Bind at the socket file `path`."""
        self.endpoint = f"ipc://{path}"
        self.num_ignored = 0
        self.num_garbled = 0
        self.num_lost = 0
        self._path = path
        self._backlogs: dict[bytes, deque[bytes]] = {}
        self._context = zmq.Context(io_threads=1)
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self.socket.set_hwm(QUEUE_LENGTH)
        try:
            self.socket.bind(self.endpoint)
        except BaseException:
            self.close(0.0)
            raise

    def admit(self, identity: bytes) -> None:
        """Hear this client from now on."""
        self._backlogs[identity] = deque()

    def expel(self, identity: bytes) -> None:
        """Hear it no longer, and forget what it was still to be sent."""
        self.num_lost += len(self._backlogs.pop(identity, ()))

    def receive(self) -> list[tuple[bytes, Command]]:
        """Every command that has arrived, in order. Never blocks.

        Bytes that are no command are answered with a Fault and counted; strangers are not heard.
        """
        commands: list[tuple[bytes, Command]] = []
        for _ in range(QUEUE_LENGTH):
            try:
                identity, *parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            if identity not in self._backlogs:
                self.num_ignored += 1
                continue
            try:
                commands.append((identity, _one_of(_COMMANDS, parts)))
            except ProtocolError as error:
                self.num_garbled += 1
                self.send(identity, Fault("protocol", str(error), ()))
        return commands

    def send(self, identity: bytes, event: Event) -> bool:
        """Send, or keep until there is room. False: the client cannot be reached, the event is lost."""
        backlog = self._backlogs.get(identity)
        if backlog is None or len(backlog) >= MAX_BACKLOG:
            self.num_lost += 1
            return False
        backlog.append(encode(event))
        return self._drain(identity, backlog)

    def send_backlogs(self) -> None:
        """Try again what could not be sent. Call it once per turn of the loop."""
        for identity, backlog in self._backlogs.items():
            if backlog:
                self._drain(identity, backlog)

    def close(self, linger_s: float) -> None:
        """Give sent events `linger_s` to leave, then remove the socket file. Idempotent."""
        self._context.destroy(linger=int(linger_s * 1000))
        self._path.unlink(missing_ok=True)

    def _drain(self, identity: bytes, backlog: deque[bytes]) -> bool:
        while backlog:
            try:
                self.socket.send_multipart((identity, backlog[0]), zmq.NOBLOCK)
            except zmq.Again:
                return True
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
                self.num_lost += len(backlog)
                backlog.clear()
                return False
            backlog.popleft()
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close(0.0)


class BusClient:
    """A client's end. Use it from one thread at a time."""

    def __init__(self, endpoint: str, identity: bytes, timeout_s: float) -> None:
        """Connect to `endpoint` under the identity that the door gave; `timeout_s` bounds `send`."""
        if not endpoint.startswith("ipc://"):
            raise ProtocolError(f"the bus is at {endpoint!r}, only ipc:// endpoints are allowed")
        self._timeout_s = timeout_s
        self._context = zmq.Context(io_threads=1)
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._socket.setsockopt(zmq.SNDTIMEO, max(int(timeout_s * 1000), 1))
        self._socket.set_hwm(QUEUE_LENGTH)
        try:
            self._socket.setsockopt(zmq.IDENTITY, identity)
            self._socket.connect(endpoint)
        except BaseException:
            self.close(0.0)
            raise

    @property
    def fileno(self) -> int:
        """ZeroMQ's own fd, edge-triggered: when it is readable call `receive(0)` until it answers None."""
        return int(self._socket.getsockopt(zmq.FD))

    def send(self, command: Command) -> None:
        """Hand the command over. Raises LoaderLostError when the queue stays full for the timeout."""
        try:
            self._socket.send(encode(command))
        except zmq.Again:
            raise LoaderLostError(
                f"the loader took no command for {self._timeout_s:g} s: is it hung? "
                f"(raise --timeout or SIDESTAGE_TIMEOUT)"
            ) from None

    def receive(self, timeout_s: float) -> Event | None:
        """The next event, or None when none came in time. Raises ProtocolError for garbage."""
        if timeout_s > 0 and not self._socket.poll(int(timeout_s * 1000)):
            return None
        try:
            parts = self._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        return _one_of(_EVENTS, parts)

    def close(self, linger_s: float = 1.0) -> None:
        """Give sent commands `linger_s` to leave. Idempotent."""
        with contextlib.suppress(zmq.ZMQError):
            self._context.destroy(linger=int(linger_s * 1000))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _one_of(kinds: tuple[type[_T], ...], parts: list[bytes]) -> _T:
    if len(parts) != 1:
        raise ProtocolError(f"a message of {len(parts)} parts; exactly one is allowed")
    message: Message = decode(parts[0])
    if not isinstance(message, kinds):
        raise ProtocolError(f"{type(message).__name__} does not belong on this side of the bus")
    return message
