"""The door: how a client comes in. One exchange over a Unix SOCK_SEQPACKET socket.

The client sends Knock; the loader answers Welcome, with the arena's memfd and the client's
eventfd (SCM_RIGHTS), or Refused. Both sides look at the other's credentials (SO_PEERCRED): only
the same user passes. Knows nothing of quotas, stores or frames: the loader decides.
"""

import contextlib
import os
import select
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from protocol.codec import decode, encode
from protocol.errors import LoaderLostError, ProtocolError, RefusedError
from protocol.folder import DOOR_NAME, refuse_network
from protocol.messages import PROTOCOL_VERSION, Knock, Refused, Welcome
from protocol.pidfd import open_pidfd

MAX_KNOCK_BYTES = 4096
MAX_ANSWER_BYTES = 16384
#: How long a visitor may stand in the door without a word.
PATIENCE_S = 5.0
MAX_VISITORS = 32

_UCRED = struct.Struct("3i")
_INT = struct.Struct("i")


class Peer(NamedTuple):
    """Who is at the other end, by the kernel's word."""

    pid: int
    uid: int


def peer_of(connection: socket.socket) -> Peer:
    """The process that connected (or listened), as it was then."""
    pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(pid, uid)


# --- the loader's side -------------------------------------------------------------------------


@dataclass(slots=True)
class Visitor:
    """Someone in the door. Answer exactly once, with `welcome` or `refuse`."""

    connection: socket.socket
    peer: Peer
    leaves_at: float

    def welcome(self, welcome: Welcome, arena_fd: int, eventfd: int) -> bool:
        """Let the visitor in. False: it has gone, and got nothing."""
        return self._answer(encode(welcome), [arena_fd, eventfd])

    def refuse(self, text: str) -> None:
        """Send the visitor away with a sentence."""
        self._answer(encode(Refused(text)), [])

    def _answer(self, data: bytes, fds: list[int]) -> bool:
        try:
            socket.send_fds(self.connection, [data], fds)
        except OSError:
            return False
        finally:
            self.connection.close()
        return True


class DoorServer:
    """Listens at `<folder>/door`. Never blocks; poll `fileno()` and call `knocks()` when it is readable."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError (or OSError) when the socket cannot be made there."""
        self.path = folder / DOOR_NAME
        self.num_refused = 0
        self._visitors: dict[int, Visitor] = {}
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._epoll = select.epoll()
        try:
            self._listener.bind(os.fspath(self.path))
            self._listener.listen(MAX_VISITORS)
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Readable when somebody comes, speaks or leaves."""
        return self._epoll.fileno()

    def knocks(self) -> list[tuple[Visitor, Knock]]:
        """Those who have knocked properly and await an answer. Everyone else has been sent away."""
        knocked: list[tuple[Visitor, Knock]] = []
        ready = [fd for fd, _ in self._epoll.poll(0)]
        for fd in ready:
            visitor = self._visitors.pop(fd, None)
            if visitor is None:
                continue
            self._epoll.unregister(fd)
            knock = self._listen_to(visitor)
            if knock is not None:
                knocked.append((visitor, knock))
        if self._listener.fileno() in ready:
            self._accept()
        return knocked

    def send_away_the_silent(self) -> None:
        """Close the door on visitors who never said a word."""
        now = time.monotonic()
        for fd, visitor in list(self._visitors.items()):
            if visitor.leaves_at < now:
                self._forget(fd)

    def close(self) -> None:
        """Send everyone away and remove the socket file. Idempotent."""
        for fd in list(self._visitors):
            self._forget(fd)
        self._epoll.close()
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it went away again, or we are out of fds and ask again next turn
        connection.setblocking(False)
        if len(self._visitors) >= MAX_VISITORS:
            self._forget(next(iter(self._visitors)))
        visitor = Visitor(connection, peer_of(connection), time.monotonic() + PATIENCE_S)
        self._visitors[connection.fileno()] = visitor
        self._epoll.register(connection.fileno(), select.EPOLLIN)

    def _listen_to(self, visitor: Visitor) -> Knock | None:
        try:
            data = visitor.connection.recv(MAX_KNOCK_BYTES + 1)
        except OSError:
            data = b""
        if not data:
            visitor.connection.close()
            return None
        refusal = _refusal(visitor.peer, len(data))
        if not refusal:
            try:
                message = decode(data)
                if isinstance(message, Knock):
                    return message
                refusal = f"expected a Knock at the door, got {type(message).__name__}"
            except ProtocolError as error:
                refusal = f"not understood at the door: {error}"
        self.num_refused += 1
        visitor.refuse(refusal)
        return None

    def _forget(self, fd: int) -> None:
        visitor = self._visitors.pop(fd)
        self._epoll.unregister(fd)
        self.num_refused += 1
        visitor.connection.close()


def _refusal(peer: Peer, num_bytes: int) -> str:
    if peer.uid != os.getuid():
        return f"this loader serves user {os.getuid()}, not user {peer.uid}: start one of your own"
    if peer.pid <= 0:
        return "this loader cannot see your process (another pid namespace): start one inside the container"
    if num_bytes > MAX_KNOCK_BYTES:
        return f"a Knock has at most {MAX_KNOCK_BYTES} bytes"
    return ""


# --- the client's side -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Admission:
    """What a client was given at the door. The caller owns both fds; `eventfd` does not block."""

    welcome: Welcome
    arena_fd: int
    eventfd: int
    loader_pid: int

    def open_pidfd(self) -> int:
        """A pidfd of the loader, the caller's to close. Raises LoaderLostError when it has died already."""
        try:
            return open_pidfd(self.loader_pid)
        except ProcessLookupError:
            raise LoaderLostError("the loader died while it let us in") from None


def enter(path: str | os.PathLike[str], knock: Knock, timeout_s: float) -> Admission:
    """Knock at the door socket `path` and come in.

    Raises RefusedError with the loader's sentence; LoaderLostError when nobody opens within
    `timeout_s`; ProtocolError when the answer is no answer; ValueError for a network address.
    """
    refuse_network(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(timeout_s)
        try:
            _connect(connection, os.fspath(path), timeout_s)
            peer = peer_of(connection)
            if peer.uid != os.getuid():
                raise RefusedError(f"the loader at {path} belongs to user {peer.uid}: start one of your own")
            with contextlib.suppress(BrokenPipeError):
                connection.send(encode(knock))
            answer, fds, is_whole = _receive(connection)
        except TimeoutError:
            raise LoaderLostError(
                f"the loader at {path} did not answer within {timeout_s:g} s: is it hung? "
                f"(raise --timeout or SIDESTAGE_TIMEOUT)"
            ) from None
        except OSError as error:
            raise LoaderLostError(f"no loader answers at {path}: {error.strerror or error}") from error
    try:
        welcome = _understand(path, answer, is_whole and len(fds) == 2)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return Admission(welcome, fds[0], fds[1], peer.pid)


def _connect(connection: socket.socket, path: str, timeout_s: float) -> None:
    until = time.monotonic() + timeout_s
    while True:
        try:
            return connection.connect(path)
        except BlockingIOError:  # a queue at the door; only blocking sockets wait by themselves
            if time.monotonic() > until:
                raise TimeoutError from None
            time.sleep(0.01)


def _receive(connection: socket.socket) -> tuple[bytes, list[int], bool]:
    """The answer, the fds that came with it (not inheritable), and whether all of it fitted.

    `socket.recv_fds` of Python 3.11 ignores its flags, so it cannot be asked for the latter two.
    """
    space = socket.CMSG_LEN(2 * _INT.size)
    answer, ancillary, flags, _ = connection.recvmsg(MAX_ANSWER_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    fds = [
        fd
        for level, kind, data in ancillary
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS
        for (fd,) in _INT.iter_unpack(data[: len(data) - len(data) % _INT.size])
    ]
    return answer, fds, not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)


def _understand(path: str | os.PathLike[str], answer: bytes, has_fds: bool) -> Welcome:
    if not answer:
        raise LoaderLostError(
            f"the loader at {path} closed the door without an answer: it is full or stopping"
        )
    message = decode(answer)
    if isinstance(message, Refused):
        raise RefusedError(message.text)
    if not isinstance(message, Welcome) or not has_fds:
        raise ProtocolError(f"the loader at {path} answered a Knock with {type(message).__name__}")
    if message.version != PROTOCOL_VERSION:
        raise RefusedError(
            f"the loader at {path} speaks protocol version {message.version}, this client "
            f"{PROTOCOL_VERSION}: install the same sidestage on both sides"
        )
    return message
