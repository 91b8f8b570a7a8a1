"""The session: what lasts from a client's admission to its goodbye, whoever serves the arena meanwhile.

Owns the connection and mends it: when the loader dies, its successor is told what is held and
asked again for what is awaited, so that every ticket still ends exactly once, with a leased frame
or without. Not thread-safe: its client locks. Knows no slots, no policies, no callers.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from compute.connection import Connection
from compute.entrance import Entrance
from compute.ledger import Completion, Ledger
from compute.patience import TIMEOUT_HINT, Patience, Verdict
from compute.roll_call import Heard, RollCall
from compute.tickets import TicketBook
from protocol.arena import H_TURNS, Arena
from protocol.errors import LoaderLostError, ProtocolError, SidestageError
from protocol.messages import Command, Fetch, Knock


class Session:
    """Open after construction. Every method may raise `failure`, which is then there to stay."""

    def __init__(
        self,
        endpoint: str,
        knock: Knock,
        timeout_s: float,
        revive: Callable[[], None] | None,
        maps_writable: bool,
    ) -> None:
        """Come in. Raises RefusedError, or LoaderLostError when no loader answers in time."""
        self.num_restarts = 0
        #: Begun anew with a living loader, because a command was lost.
        self.num_renewals = 0
        self.failure: SidestageError | None = None
        #: The loader is dead, and nothing has been asked of its successor yet.
        self.is_orphaned = False
        self._timeout_s = timeout_s
        self._is_owner = revive is not None
        self._patience = Patience(timeout_s)
        self._roll_call = RollCall()
        # What the loader complained of: our fault, unless a command was lost.
        self._complaint: ProtocolError | None = None
        self.entrance = Entrance(endpoint, knock, timeout_s, revive, maps_writable)
        self.connection = self.entrance.enter()
        self.tickets: TicketBook[Completion] = TicketBook(self.arena.geometry.num_tickets, knock.quota)
        self.ledger = Ledger(self.tickets, knock.completions)
        #: Readable when another thread has met something that the thread in `wait` waits for.
        self.notice = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    @property
    def arena(self) -> Arena:
        return self.connection.arena

    @property
    def has_complaint(self) -> bool:
        """The loader complained, and it is not settled yet why."""
        return self._complaint is not None

    @property
    def is_away(self) -> bool:
        """The loader is dead."""
        return self.is_orphaned or self.connection.is_dead()

    @property
    def turns(self) -> int:
        """How often the loader's loop has gone round."""
        return int(self.arena.header[H_TURNS])

    def close(self) -> None:
        """Say goodbye: what is awaited is cancelled, what is leased goes back."""
        self.connection.close(says_goodbye=True)
        self.arena.close()
        os.close(self.notice)

    # --- saying and hearing --------------------------------------------------------------------

    def post(self, command: Command) -> None:
        """Send; the successor of a dead loader is asked for everything awaited instead."""
        if self.is_orphaned or not self.has_sent(command):
            self.recover()
        self.hear()

    def has_sent(self, command: Command) -> bool:
        """False: the loader is dead."""
        try:
            self.connection.send(command)
        except LoaderLostError as error:
            if not self.connection.is_dead():
                self._fail(error)
            return False
        return True

    def hear(self) -> None:
        """Take in what has arrived: ZeroMQ's fd will not tell the thread in `wait` of it again."""
        self.listen(self.ledger.take_events)
        if self.ledger.has_news:
            os.eventfd_write(self.notice, 1)

    def listen(self, take: Callable[[Connection], None]) -> None:
        """Let the ledger take in words or messages; a complaint is settled by the roll call."""
        try:
            take(self.connection)
        except ProtocolError as error:
            self._complaint = self._complaint or error
        if self._complaint:
            self._call_the_roll(time.monotonic())

    def collect(self) -> list[Completion]:
        """Tickets that have ended since the last call, each once."""
        self.listen(self.ledger.collect)
        ended = self.ledger.tell()
        if any(not completion.is_dropped for completion in ended):
            self.note_progress()
        return ended

    def note_progress(self) -> None:
        """Experts come."""
        now = time.monotonic()
        self._patience.note_progress(now, self.turns)
        self._roll_call.note_progress(now)

    # --- when nothing comes --------------------------------------------------------------------

    def has_news(self) -> bool:
        """A ticket has ended, and nobody was told."""
        self.listen(self.ledger.take_events)
        return self.ledger.has_news

    def fds(self) -> list[int]:
        """One of these is readable when there may be news."""
        fds = [self.connection.eventfd, self.connection.bus.fileno, self.notice]
        return fds if self.is_orphaned else [*fds, self.connection.pidfd]

    def look(self, connection: Connection, ready: set[int]) -> None:
        """After a wait on the fds of `connection`, of which `ready` are readable."""
        if self.notice in ready:
            os.eventfd_read(self.notice)
        if connection is not self.connection:
            return
        if connection.eventfd in ready:
            os.eventfd_read(connection.eventfd)
        if connection.pidfd in ready:
            # With nothing awaited there is no hurry: the next command finds the successor.
            self.is_orphaned = True
        if self.tickets.asked and self.is_orphaned:
            self.recover()
        elif self.tickets.asked:
            self._check_patience()

    def _check_patience(self) -> None:
        self.listen(self.ledger.collect)
        if self.ledger.has_news:
            self.note_progress()
            return
        match self._patience.judge(time.monotonic(), self.turns):
            case Verdict.HUNG if self._is_owner:
                self.recover()
            case Verdict.OVER:
                self._fail(
                    LoaderLostError(
                        f"the loader (pid {self.connection.loader_pid}) has staged no expert for "
                        f"{self._timeout_s:g} s {TIMEOUT_HINT}"
                    )
                )
            case Verdict.WAIT:
                self._call_the_roll(time.monotonic())

    def _call_the_roll(self, now: float) -> None:
        """In a silence, or after a complaint, find out whether the loader has heard everything."""
        connection = self.connection
        num_lost = None
        if connection.asked == connection.answered:
            num_lost = connection.asked - self.ledger.stats.get("client_commands", connection.asked)
        heard = self._roll_call.judge(now, num_lost, self.turns)
        if heard is Heard.NOT_ALL:
            self._renew()
            return
        if heard is Heard.ALL and self._complaint:
            self._fail(self._complaint)
        is_wanted = self._roll_call.is_due(now) or (self._complaint and not self._roll_call.is_under_way)
        if is_wanted and self.has_sent(connection.next_question()):
            self._roll_call.ask(now, self.turns)

    # --- after the loader's death --------------------------------------------------------------

    def recover(self) -> None:
        """Find the successor of a dead loader, or with `revive` replace one that is dead or hung.

        It is told what we hold and asked again for what we await.
        """
        how_it_ended = f"stopped ({reason})" if (reason := self.ledger.stop_reason) else "died"
        try:
            self.connection = self.entrance.enter_again(
                how_it_ended, self.connection.known, self.ledger.num_staged, self._last_words
            )
        except SidestageError as error:
            self._fail(error)
        self.num_restarts += 1
        self.is_orphaned = False
        self._ask_again()

    def _renew(self) -> None:
        """A command was lost: begin anew with the same loader; both sides know what is held and awaited."""
        old = self.connection
        try:
            self.connection = self.entrance.enter_anew(old.known, self._leases)
        except SidestageError as error:
            if not old.is_dead():
                self._fail(error)
            self.recover()
            return
        old.close(says_goodbye=False)
        self.num_renewals += 1
        self._ask_again()

    def _leases(self, connection: Connection) -> Sequence[Completion]:
        self.ledger.collect_words(connection)
        return [*self.tickets.held.values()]

    def _ask_again(self) -> None:
        """Ask for everything awaited, but what was cancelled."""
        self._complaint = None
        self._roll_call = RollCall()
        self.ledger.forget_loader(self.arena)
        self.note_progress()
        awaited = [*self.tickets.asked.values()]
        demand = tuple(asked.request for asked in awaited if asked.is_demand)
        prefetch = tuple(asked.request for asked in awaited if not asked.is_demand)
        if awaited:
            self.connection.send(Fetch(demand=demand, prefetch=prefetch))
        os.eventfd_write(self.notice, 1)

    def _last_words(self) -> Sequence[Completion]:
        """What the dead loader published still counts; then its connection can go."""
        if self.connection.is_open:
            assert self.connection.is_dead(), "the old loader still runs"
            self.ledger.collect(self.connection)
            self.connection.close(says_goodbye=False)
        return [*self.tickets.held.values()]

    def _fail(self, error: SidestageError) -> NoReturn:
        """There is no way on: this and every later call raises."""
        self.failure = error
        os.eventfd_write(self.notice, 1)
        raise error
