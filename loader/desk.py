"""The desk: does what a client's command asks, and says what the ledger wants said.

Whatever a client sends, the others go on: nonsense is complained of to its sender. Knows neither
the loop that calls it nor the bytes that move.
"""

import logging
import os
import time
from collections.abc import Callable
from typing import assert_never

from loader.clients import Client
from loader.faults import FaultBoard, Word
from loader.ledger import Ledger
from loader.outbox import Outbox
from loader.reception import Reception
from loader.reports import problem_of, shown
from protocol.channel import BusServer
from protocol.messages import (
    Command,
    Dropped,
    Fault,
    Fetch,
    Goodbye,
    Hello,
    Ready,
    Release,
    Report,
    Shutdown,
    Snapshot,
    Staged,
    Stats,
)

_MAX_LOGGED_FAULTS = 100

_log = logging.getLogger("sidestage.loader")


class Desk:
    """`stop` stops the loader; `counters` are what the service knows beyond the ledger."""

    def __init__(
        self,
        ledger: Ledger,
        reception: Reception,
        bus: BusServer,
        *,
        num_keys: int,
        stop: Callable[[str], None],
        counters: Callable[[], dict[str, int]],
        faults: FaultBoard | None,
    ) -> None:
        self._ledger = ledger
        self._reception = reception
        self._bus = bus
        self._num_keys = num_keys
        self._stop = stop
        self._counters = counters
        self._faults = faults
        self._owner_pid = os.getppid()
        self._num_logged_faults = 0

    def obey(self, identity: bytes, command: Command) -> None:
        """Do it, or complain to whoever sent it."""
        client = self._reception.client_of(identity)
        if client is None:
            return  # it left earlier in this turn
        if objection := _objection(client, command):
            self._ledger.complain(client, "order", objection)
            return
        if self._faults and client.is_greeted and self._faults.take(Word.LOST_COMMANDS):
            return
        client.num_heard += client.is_greeted
        match command:
            case Hello():
                self._greet(client, command)
            case Fetch():
                self._ledger.fetch(client, command)
            case Release():
                self._ledger.release(client, command.tickets)
            case Snapshot():
                self._answer(client, command)
            case Report():
                self._keep_report(client, command)
            case Goodbye():
                self._reception.let_go(client, "it said goodbye")
            case Shutdown():
                self._shut_down(client)
            case _:
                assert_never(command)

    def say(self, outbox: Outbox) -> None:
        """Faults first: whoever finds its ticket dropped can then learn why."""
        for number, fault in outbox.faults:
            self._log_fault(number, fault)
            self._reception.tell(number, fault)
        for number, words in outbox.staged.items():
            self._reception.tell(number, Staged(tuple(words)))
        for number, tickets in outbox.dropped.items():
            self._reception.tell(number, Dropped(tuple(tickets)))
        if outbox.doomed:
            self._ledger.drop_doomed(outbox.doomed)
            self.say(self._ledger.take_outbox())

    def _greet(self, client: Client, hello: Hello) -> None:
        if client.is_greeted or hello.client != client.number:
            text = f"Hello of client {hello.client} from client {client.number}, who says it once, as itself"
            self._ledger.complain(client, "order", text)
            return
        if client.is_observer:
            client.is_greeted = True
        else:
            self._ledger.greet(client, hello.held)
        self._bus.send(client.identity, Ready(self._ledger.epoch))

    def _shut_down(self, client: Client) -> None:
        if client.pid == self._owner_pid:
            self._stop("its owner asked for it")
            return
        text = f"only process {self._owner_pid}, which started this loader, may stop it"
        self._ledger.complain(client, "order", text)

    def _keep_report(self, client: Client, report: Report) -> None:
        if problem := problem_of(report, self._num_keys):
            self._ledger.complain(client, "report", problem)
            return
        client.report, client.reported_ns = report, time.monotonic_ns()

    def _answer(self, client: Client, snapshot: Snapshot) -> None:
        """What the client's earlier commands led to comes first; an observer learns of the others too."""
        self.say(self._ledger.take_outbox())
        if client.is_observer:
            for other in self._reception.clients():
                self._bus.send(client.identity, shown(other, time.monotonic_ns()))
        values = {**self._ledger.stats(client), **self._counters()}
        self._bus.send(client.identity, Stats(snapshot.question, tuple(values), tuple(values.values())))

    def _log_fault(self, number: int, fault: Fault) -> None:
        self._num_logged_faults += 1
        if self._num_logged_faults <= _MAX_LOGGED_FAULTS:
            _log.warning("fault (%s) for client %d: %s", fault.kind, number, fault.text)


def _objection(client: Client, command: Command) -> str:
    """Why this client may not say that now; "" if it may."""
    name = type(command).__name__
    if not client.is_greeted and not isinstance(command, Hello | Goodbye):
        return f"{name} came before Hello"
    if client.is_observer and not isinstance(command, Hello | Snapshot | Goodbye):
        return f"{name} from an observer, who may ask for a Snapshot only"
    return ""
