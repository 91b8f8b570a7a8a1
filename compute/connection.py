"""One connection: from a loader's door to that loader's death, or to our goodbye.

Owns the fds, the bus and the mapping that one admission brought. Knows nothing of tickets, and
never comes back: after a restart of the loader there is a new connection.
"""

import contextlib
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass

from compute.patience import TIMEOUT_HINT
from protocol.arena import C_PID, Arena, ArenaGeometry
from protocol.channel import BusClient
from protocol.door import enter
from protocol.errors import LoaderLostError, ProtocolError, RefusedError
from protocol.messages import Command, Fault, Goodbye, Hello, Knock, Ready, Snapshot, Welcome
from protocol.pidfd import is_dead

GOODBYE_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class KnownArena:
    """An arena that this client has mapped, and the memfd's identity."""

    arena: Arena
    inode: tuple[int, int]


class Connection:
    """Open after construction; `greet` before the first command. `eventfd` does not block."""

    def __init__(
        self,
        endpoint: str,
        knock: Knock,
        timeout_s: float,
        known: KnownArena | None,
        *,
        maps_writable: bool = False,
    ) -> None:
        """Come in at `endpoint`. The mapping of `known` is kept when the loader hands out the same arena.

        A mapping that a device shall read by itself must be writable; nobody writes.

        Raises RefusedError, ProtocolError, or LoaderLostError when nobody opens in time.
        """
        admission = enter(endpoint, knock, timeout_s)
        self.welcome: Welcome = admission.welcome
        self.eventfd = admission.eventfd
        self.loader_pid = admission.loader_pid
        with ExitStack() as opened:
            opened.callback(os.close, admission.eventfd)
            try:
                self._check_store(knock.store)
                self.known = self._map(admission.arena_fd, known, maps_writable)
            finally:
                os.close(admission.arena_fd)
            self.pidfd = admission.open_pidfd()
            opened.callback(os.close, self.pidfd)
            self.bus = BusClient(self.welcome.endpoint, self.welcome.identity, timeout_s)
            opened.callback(self.bus.close, 0.0)
            #: This client's completion words, by place.
            self.words = memoryview(self.arena.completions[self.welcome.client])
            self._opened = opened.pop_all()
        self.is_open = True
        #: Commands since our Hello.
        self.num_sent = 0
        #: The last Snapshot that was sent and the last that was answered; 0 while there is none.
        self.asked = 0
        self.answered = 0

    @property
    def arena(self) -> Arena:
        return self.known.arena

    def greet(self, held: tuple[int, ...], timeout_s: float) -> None:
        """Say which leases we still have, and wait until the loader is ready for us.

        Raises LoaderLostError when it dies or does not answer in time.
        """
        self.bus.send(Hello(self.welcome.client, held))
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            event = self.bus.receive(min(0.1, timeout_s))
            match event:
                case Ready():
                    return
                case Fault(text=text):
                    raise ProtocolError(f"the loader did not understand our Hello: {text}")
                case None if self.is_dead():
                    raise LoaderLostError("the loader died while it let us in")
        raise LoaderLostError(f"the loader did not answer our Hello within {timeout_s:g} s {TIMEOUT_HINT}")

    def send(self, command: Command) -> None:
        """Hand the command over. Raises LoaderLostError when the queue stays full for the timeout."""
        self.bus.send(command)
        self.num_sent += 1
        if isinstance(command, Snapshot):
            self.asked = command.question

    def next_question(self) -> Snapshot:
        """A Snapshot with the number that it has among our commands, if it is the next to be sent."""
        return Snapshot(self.num_sent + 1)

    def is_dead(self) -> bool:
        """The loader's process has ended: it writes no more."""
        return is_dead(self.pidfd)

    def close(self, *, says_goodbye: bool) -> None:
        """Leave. The mapping stays as long as somebody holds a view of it. Idempotent."""
        if not self.is_open:
            return
        self.is_open = False
        self.words.release()
        if says_goodbye and not self.is_dead():
            with contextlib.suppress(LoaderLostError):
                self.bus.send(Goodbye())
                self._await_departure()
        self._opened.close()

    def _await_departure(self) -> None:
        """Until the loader has heard our goodbye, the frames of our quota are not free for others."""
        row = self.arena.clients[self.welcome.client]
        until = time.monotonic() + GOODBYE_TIMEOUT_S
        while int(row[C_PID]) == os.getpid() and not self.is_dead() and time.monotonic() < until:
            time.sleep(0.0005)

    def _check_store(self, expected: str) -> None:
        if expected and self.welcome.store != expected:
            raise RefusedError(
                f"the loader serves store {self.welcome.store} ({self.welcome.store_path}), this model needs "
                f"{expected}: start a loader on that store"
            )

    def _map(self, fd: int, known: KnownArena | None, is_writable: bool) -> KnownArena:
        found = os.fstat(fd)
        inode = (found.st_dev, found.st_ino)
        if known and known.inode == inode:
            return known
        geometry = ArenaGeometry(*self.welcome.geometry)
        if known and known.arena.geometry != geometry:
            raise RefusedError(
                f"the loader came back with another arena ({geometry.num_frames} frames of "
                f"{geometry.frame_bytes} bytes, not {known.arena.geometry.num_frames} of "
                f"{known.arena.geometry.frame_bytes}): start it with its former --ram, or start again"
            )
        arena = Arena(fd, writable=is_writable)
        if arena.geometry != geometry:
            raise ProtocolError("the arena handed over is not the one that the loader described")
        return KnownArena(arena, inode)
