"""The reception: who may come in, who is in, and who has left for good.

Answers knocks at the door, knows every client's session on the bus, and watches the clients'
processes: only proven death takes a client's leases, a stopped one keeps them.
"""

import logging
import os
import time
from pathlib import Path

import zmq

from loader.clients import Client, NoRoomError, open_pidfd
from loader.ledger import Ledger
from protocol.arena import ArenaGeometry
from protocol.channel import BusServer, new_identity
from protocol.door import DoorServer, Visitor
from protocol.errors import RefusedError
from protocol.messages import PROTOCOL_VERSION, Event, Knock, Welcome

#: Observers at the same time.
MAX_OBSERVERS = 8
#: How long a knock waits for room: the goodbye of one who has just left may still be on its way.
GRACE_S = 0.25
_MAX_WAITING = 32

log = logging.getLogger("sidestage.loader")


class Reception:
    """Sessions of clients. Used by the service's loop alone."""

    def __init__(
        self,
        door: DoorServer,
        bus: BusServer,
        ledger: Ledger,
        poller: zmq.Poller,
        *,
        store: str,
        store_path: Path,
        arena_fd: int,
        geometry: ArenaGeometry,
    ) -> None:
        """`store` is the fingerprint of what is served from `store_path`. Pidfds join `poller`."""
        self._door = door
        self._bus = bus
        self._ledger = ledger
        self._poller = poller
        self._store = store
        self._store_path = os.fsencode(store_path.resolve()).decode(errors="replace")
        self._arena_fd = arena_fd
        self._geometry = geometry
        self._by_identity: dict[bytes, Client] = {}
        self._by_number: dict[int, Client] = {}
        self._by_pidfd: dict[int, Client] = {}
        self._waiting: list[tuple[Visitor, Knock, float]] = []
        poller.register(door.fileno(), zmq.POLLIN)
        for client in ledger.clients():
            self._watch(client)

    def client_of(self, identity: bytes) -> Client | None:
        """The client behind an identity on the bus; None when it has left."""
        return self._by_identity.get(identity)

    def tell(self, number: int, event: Event) -> None:
        """Send an event to a client by number; nobody is told when it has left."""
        client = self._by_number.get(number)
        if client is not None:
            self._bus.send(client.identity, event)

    def tell_everyone(self, event: Event) -> None:
        """Send an event to everyone who has a session."""
        for number in self._by_number:
            self.tell(number, event)

    def clients(self) -> list[Client]:
        """Those with a session, observers aside."""
        return [client for client in self._by_number.values() if not client.is_observer]

    def bury(self, ready: dict[object, int]) -> None:
        """Let go of clients whose pidfd is among the `ready` fds: they are dead."""
        for client in [client for pidfd, client in self._by_pidfd.items() if pidfd in ready]:
            self.let_go(client, f"process {client.pid} has died")

    def let_go(self, client: Client, why: str) -> None:
        """The client has left: its tickets end and its leases come back."""
        self._forget(client.number)
        if client.is_observer:
            client.close()
            return
        self._ledger.remove(client)
        log.info("client %d is out: %s", client.number, why)

    def answer_knocks(self, has_visitors: bool) -> None:
        """Let in or send away whoever stands in the door. Once per turn; asks the door if `has_visitors`."""
        waiting, self._waiting = self._waiting, []
        for visitor, knock, until in waiting:
            self._answer(visitor, knock, until)
        for visitor, knock in self._door.knocks() if has_visitors else []:
            self._answer(visitor, knock, time.monotonic() + GRACE_S)
        self._door.send_away_the_silent()

    def close_door(self) -> None:
        """Nobody comes in any more."""
        self._door.close()
        while self._waiting:
            self._waiting.pop()[0].refuse("this loader is stopping")

    def _answer(self, visitor: Visitor, knock: Knock, until: float) -> None:
        try:
            self._check(knock)
            client = self._admit(visitor, knock)
        except RefusedError as error:
            may_wait = isinstance(error, NoRoomError) and len(self._waiting) < _MAX_WAITING
            if may_wait and time.monotonic() < until:
                self._waiting.append((visitor, knock, until))
                return
            visitor.refuse(str(error))
            log.info("refused process %d: %s", visitor.peer.pid, error)
            return
        self._let_in(visitor, client, knock)

    def _admit(self, visitor: Visitor, knock: Knock) -> Client:
        """A client with a row in the arena, or an observer. Raises RefusedError."""
        if knock.quota != 0:
            return self._ledger.admit(visitor.peer.pid, knock.quota, knock.resume)
        free = [number for number in range(-MAX_OBSERVERS, 0) if number not in self._by_number]
        if not free:
            raise NoRoomError(f"{MAX_OBSERVERS} observers look on already: close one")
        return Client(free[-1], visitor.peer.pid, 0, open_pidfd(visitor.peer.pid))

    def _let_in(self, visitor: Visitor, client: Client, knock: Knock) -> None:
        self._forget(client.number)
        client.identity = new_identity()
        client.eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        client.by_word = knock.completions == "word"
        self._bus.admit(client.identity)
        self._by_identity[client.identity] = self._by_number[client.number] = client
        self._watch(client)
        if visitor.welcome(self._welcome(client), self._arena_fd, client.eventfd):
            if client.is_observer:
                return
            self._ledger.seat(client)
            log.info("client %d is in: process %d, %d frames", client.number, client.pid, client.quota)
        else:
            self.let_go(client, "it went away in the door")

    def _check(self, knock: Knock) -> None:
        if knock.version != PROTOCOL_VERSION:
            raise RefusedError(
                f"the client speaks protocol version {knock.version}, this loader {PROTOCOL_VERSION}: "
                f"install the same sidestage on both sides"
            )
        if knock.store not in ("", self._store):
            raise RefusedError(
                f"the client wants store {knock.store[:64]}, this loader serves {self._store} "
                f"({self._store_path}): attach to a loader of that store"
            )

    def _welcome(self, client: Client) -> Welcome:
        return Welcome(
            version=PROTOCOL_VERSION,
            client=client.number,
            epoch=self._ledger.epoch,
            identity=client.identity,
            endpoint=self._bus.endpoint,
            store=self._store,
            store_path=self._store_path,
            geometry=self._geometry.as_ints(),
        )

    def _watch(self, client: Client) -> None:
        self._by_pidfd[client.pidfd] = client
        self._poller.register(client.pidfd, zmq.POLLIN)

    def _forget(self, number: int) -> None:
        """Stop listening to, and watching, whoever came in under this number."""
        for pidfd, client in list(self._by_pidfd.items()):
            if client.number == number:
                self._poller.unregister(pidfd)
                del self._by_pidfd[pidfd]
        client_or_none = self._by_number.pop(number, None)
        if client_or_none is not None:
            self._bus.expel(client_or_none.identity)
            del self._by_identity[client_or_none.identity]
