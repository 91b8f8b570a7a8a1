"""The loader's client: what a compute process knows of the loader.

Owns the connection and mends it: when the loader dies, its successor is told what is held and
asked again for what is awaited, so that every ticket still ends exactly once, with a leased
frame or without. Knows nothing of slots, of policies or of what bytes mean.
Every method may be called from any thread, but only one thread may be in `wait` at a time.
"""

import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from typing import NoReturn, Self

from compute.connection import Connection
from compute.entrance import Entrance
from compute.ledger import Completion, Ledger, poll_fds
from compute.patience import TIMEOUT_HINT, Patience, Verdict, timeout_setting
from compute.roll_call import ROLL_CALL_S, Heard, RollCall
from compute.tickets import TicketBook
from protocol.arena import H_TURNS, Arena
from protocol.errors import LoaderLostError, ProtocolError, SidestageError
from protocol.messages import PROTOCOL_VERSION, Completions, Fetch, Knock, Release, Report, Snapshot
from protocol.timeline import Timeline

#: (key, deadline): an expert and the layer-step that needs it.
Wanted = tuple[int, int]

SPIN_US = 20

_TICK_S = 1.0
_STATS_INTERVAL_S = 0.005


class LoaderClient:
    """A client of the loader whose door is at `endpoint`, with a quota of `quota` frames.

    `store`: the fingerprint that the loader must serve, "" for whichever it does.
    `completions`: None chooses words in the arena where that is sound, messages elsewhere.
    `timeout_s`: None takes SIDESTAGE_TIMEOUT, else 30.
    `revive`: restarts a loader that the caller owns; called when it is found dead or hung.
    """

    def __init__(
        self,
        endpoint: str | os.PathLike[str],
        *,
        quota: int,
        store: str = "",
        completions: Completions | None = None,
        timeout_s: float | None = None,
        revive: Callable[[], None] | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        """Come in. Raises RefusedError, or LoaderLostError when no loader answers in time."""
        completions = completions or _sound_completions()
        self.endpoint = os.fspath(endpoint)
        self.timeout_s = timeout_setting(timeout_s)
        self.num_restarts = 0
        #: Sessions begun anew with a living loader, because a command was lost.
        self.num_renewals = 0
        self.quota = quota
        self._is_owner = revive is not None
        self._timeline = timeline
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._failure: SidestageError | None = None
        self._is_orphaned = False
        self._told_at = -1
        self.is_closed = False
        self._patience = Patience(self.timeout_s)
        self._roll_call = RollCall()
        # What the loader complained of: our fault, unless a command was lost.
        self._complaint: ProtocolError | None = None
        knock = Knock(PROTOCOL_VERSION, quota, store, completions, -1)
        self._entrance = Entrance(self.endpoint, knock, self.timeout_s, revive)
        self._connection = self._entrance.enter()
        self.tickets: TicketBook[Completion] = TicketBook(self.arena.geometry.num_tickets, quota)
        self._ledger = Ledger(self.tickets, completions)
        # Wakes the thread in `wait` when another thread has met something that it waits for.
        self._notice = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    # --- what the loader said at the door ------------------------------------------------------

    @property
    def arena(self) -> Arena:
        return self._connection.arena

    @property
    def store(self) -> str:
        """The fingerprint of the store that is served."""
        return self._connection.welcome.store

    @property
    def store_path(self) -> str:
        return self._connection.welcome.store_path

    @property
    def loader_pid(self) -> int:
        return self._connection.loader_pid

    def flow_id(self, ticket: int) -> int:
        """The number of the ticket's arrow in the timeline."""
        return self._connection.welcome.client << 24 | ticket

    # --- asking --------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many more tickets may be asked."""
        return self.tickets.room

    def fetch(
        self,
        *,
        demand: Sequence[Wanted] = (),
        prefetch: Sequence[Wanted] = (),
        promote: Sequence[int] = (),
        cancel: Sequence[int] = (),
        released: Sequence[int] = (),
        evicted: Sequence[int] = (),
    ) -> list[int]:
        """One message with a step's orders. Returns the tickets of `demand`, then of `prefetch`.

        `released` makes room before anything is asked; what was promoted or cancelled may have
        ended already. Returns at once, unless the loader must be found again first: LoaderLostError.
        """
        with self._lock:
            self._check_usable()
            start_ns = time.monotonic_ns()
            if not self.tickets.asked:
                self._note_progress()
            returned = self._give_up(released)
            cancel = [ticket for ticket in cancel if ticket in self.tickets.asked]
            promote = [ticket for ticket in promote if ticket in self.tickets.asked]
            self.tickets.cancel(cancel)
            self.tickets.promote(promote)
            demands = tuple(self.tickets.ask(*wanted, is_demand=True) for wanted in demand)
            prefetches = tuple(self.tickets.ask(*wanted, is_demand=False) for wanted in prefetch)
            self._post(Fetch(demands, prefetches, tuple(promote), tuple(cancel), returned, tuple(evicted)))
            tickets = [request.ticket for request in (*demands, *prefetches)]
            if self._timeline:
                self._draw(self._timeline, tickets, start_ns)
            return tickets

    def release(self, tickets: Sequence[int]) -> None:
        """Give leases back without asking for anything."""
        with self._lock:
            self._check_usable()
            self._post(Release(self._give_up(tickets)))

    def report(self, report: Report) -> None:
        """For whoever observes. Nothing is waited for: a loader that is away hears nothing."""
        with self._lock:
            self._check_usable()
            turns = self._turns()
            if turns == self._told_at or self._is_orphaned or self._connection.is_dead():
                return
            self._told_at = turns
            self._has_sent(report)

    # --- hearing -------------------------------------------------------------------------------

    def completed(self) -> list[Completion]:
        """Tickets that have ended since the last call, each once. Does not wait for any."""
        with self._lock:
            self._check_usable()
            self._listen(self._ledger.collect)
            ended = self._ledger.tell()
            if any(not completion.is_dropped for completion in ended):
                self._note_progress()
            return ended

    def wait(self, *, wake: Sequence[int] = (), spin_us: int = SPIN_US) -> list[Completion]:
        """Block until a ticket has ended, or one of the fds in `wake` is readable (perhaps nothing then).

        Raises LoaderLostError when nothing ends for the timeout or the loader is gone for good.
        """
        until_ns = time.monotonic_ns() + spin_us * 1000
        while True:
            ended = self.completed()
            if ended:
                return ended
            if time.monotonic_ns() >= until_ns and self._sleep(wake):
                return self.completed()

    def stats(self) -> dict[str, int]:
        """The loader's counters, asked now; `loader_restarts` is ours. Raises LoaderLostError."""
        until = time.monotonic() + self.timeout_s
        asked_of: Connection | None = None
        question, again_at = Snapshot(), 0.0
        while time.monotonic() < until:
            with self._lock:
                self._check_usable()
                if self._connection.is_dead():
                    self._recover()
                if asked_of is not self._connection or time.monotonic() > again_at:
                    asked_of, question = self._connection, self._connection.next_question()
                    again_at = time.monotonic() + ROLL_CALL_S
                    self._post(question)
                self._hear()
                is_told = asked_of is self._connection and asked_of.answered >= question.question
                if is_told and not self._complaint:
                    return {**self._ledger.stats, "loader_restarts": self.num_restarts}
                fd = self._connection.bus.fileno
            poll_fds((fd,), _STATS_INTERVAL_S)
        raise LoaderLostError(f"the loader gave no counters within {self.timeout_s:g} s {TIMEOUT_HINT}")

    def interrupt(self) -> None:
        """Let a thread that looks for the loader's successor give up; `close` is to follow."""
        self._entrance.leave()

    def close(self) -> None:
        """Say goodbye: what is awaited is cancelled, what is leased goes back. Idempotent.

        A fork of the process that came in leaves its parent's connection alone.
        """
        if os.getpid() != self._owner:
            return
        self.interrupt()
        with self._lock:
            if not self.is_closed:
                self.is_closed = True
                self._connection.close(says_goodbye=True)
                self.arena.close()
                os.close(self._notice)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # --- sending, with the lock held -----------------------------------------------------------

    def _check_usable(self) -> None:
        if self._failure:
            raise type(self._failure)(str(self._failure)) from self._failure
        if self.is_closed:
            raise RuntimeError("this client of the loader has been closed")
        if os.getpid() != self._owner:
            raise RuntimeError("a client of the loader does not survive a fork: make one in each process")

    def _give_up(self, tickets: Sequence[int]) -> tuple[int, ...]:
        """End these leases here; returns those that the loader has to hear of."""
        leases = [self.tickets.release(ticket) for ticket in tickets]
        return tuple(lease.ticket for lease in leases if lease.arena is self.arena)

    def _post(self, command: Fetch | Release | Snapshot) -> None:
        """Send; the successor of a dead loader is asked for everything awaited instead."""
        if self._is_orphaned or not self._has_sent(command):
            self._recover()
        self._hear()

    def _has_sent(self, command: Fetch | Release | Snapshot | Report) -> bool:
        """False: the loader is dead."""
        try:
            self._connection.send(command)
        except LoaderLostError as error:
            if not self._connection.is_dead():
                self._fail(error)
            return False
        return True

    def _hear(self) -> None:
        """Take in what has arrived: ZeroMQ's fd will not tell the thread in `wait` of it again."""
        self._listen(self._ledger.take_events)
        if self._ledger.has_news:
            os.eventfd_write(self._notice, 1)

    def _listen(self, take: Callable[[Connection], None]) -> None:
        try:
            take(self._connection)
        except ProtocolError as error:
            self._complaint = self._complaint or error
        if self._complaint:
            self._call_the_roll(time.monotonic())

    def _draw(self, timeline: Timeline, tickets: list[int], start_ns: int) -> None:
        timeline.span("fetch", "fetch", start_ns, time.monotonic_ns(), experts=len(tickets))
        for ticket in tickets:
            timeline.flow("s", self.flow_id(ticket), "fetch", start_ns)

    # --- waiting -------------------------------------------------------------------------------

    def _sleep(self, wake: Sequence[int]) -> bool:
        """Block until there may be news. True: an fd in `wake` is readable."""
        with self._lock:
            self._check_usable()
            self._listen(self._ledger.take_events)
            if self._ledger.has_news:
                return False
            connection = self._connection
            fds = [connection.eventfd, connection.bus.fileno, self._notice, *wake]
            if not self._is_orphaned:
                fds.append(connection.pidfd)
        ready = poll_fds(fds, min(_TICK_S, self.timeout_s / 4))
        with self._lock:
            self._check_usable()
            if self._notice in ready:
                os.eventfd_read(self._notice)
            if connection is self._connection:
                self._look(connection, ready)
        return not ready.isdisjoint(wake)

    def _look(self, connection: Connection, ready: set[int]) -> None:
        if connection.eventfd in ready:
            os.eventfd_read(connection.eventfd)
        if connection.pidfd in ready:
            # With nothing awaited there is no hurry: the next command finds the successor.
            self._is_orphaned = True
        if self.tickets.asked and self._is_orphaned:
            self._recover()
        elif self.tickets.asked:
            self._check_patience()

    def _check_patience(self) -> None:
        self._listen(self._ledger.collect)
        if self._ledger.has_news:
            self._note_progress()
            return
        match self._patience.judge(time.monotonic(), self._turns()):
            case Verdict.HUNG if self._is_owner:
                self._recover()
            case Verdict.OVER:
                self._fail(
                    LoaderLostError(
                        f"the loader (pid {self.loader_pid}) has staged no expert for {self.timeout_s:g} s "
                        f"{TIMEOUT_HINT}"
                    )
                )
            case Verdict.WAIT:
                self._call_the_roll(time.monotonic())

    def _call_the_roll(self, now: float) -> None:
        """In a silence, or after a complaint, find out whether the loader has heard everything."""
        connection = self._connection
        num_lost = None
        if connection.asked == connection.answered:
            num_lost = connection.asked - self._ledger.stats.get("client_commands", connection.asked)
        heard = self._roll_call.judge(now, num_lost, self._turns())
        if heard is Heard.NOT_ALL:
            self._renew()
            return
        if heard is Heard.ALL and self._complaint:
            self._fail(self._complaint)
        is_wanted = self._roll_call.is_due(now) or (self._complaint and not self._roll_call.is_under_way)
        if is_wanted and self._has_sent(connection.next_question()):
            self._roll_call.ask(now, self._turns())

    def _note_progress(self) -> None:
        now = time.monotonic()
        self._patience.note_progress(now, self._turns())
        self._roll_call.note_progress(now)

    def _turns(self) -> int:
        """How often the loader's loop has gone round."""
        return int(self.arena.header[H_TURNS])

    # --- after the loader's death --------------------------------------------------------------

    def _recover(self) -> None:
        """Find the successor of a dead loader, or with `revive` replace one that is dead or hung.

        It is told what we hold and asked again for what we await.
        """
        how_it_ended = f"stopped ({reason})" if (reason := self._ledger.stop_reason) else "died"
        try:
            self._connection = self._entrance.enter_again(
                how_it_ended, self._connection.known, self._ledger.num_staged, self._last_words
            )
        except SidestageError as error:
            self._fail(error)
        self.num_restarts += 1
        self._is_orphaned = False
        self._ask_again()

    def _renew(self) -> None:
        """A command was lost: begin a new session, in which both sides know what is held and awaited."""
        old = self._connection
        try:
            self._connection = self._entrance.enter_anew(old.known, self._leases)
        except SidestageError as error:
            if not old.is_dead():
                self._fail(error)
            self._recover()
            return
        old.close(says_goodbye=False)
        self.num_renewals += 1
        self._ask_again()

    def _leases(self, connection: Connection) -> Sequence[Completion]:
        self._ledger.collect_words(connection)
        return [*self.tickets.held.values()]

    def _ask_again(self) -> None:
        """Ask for everything awaited, but what was cancelled."""
        self._complaint = None
        self._roll_call = RollCall()
        self._ledger.forget_loader(self.arena)
        self._note_progress()
        awaited = [*self.tickets.asked.values()]
        demand = tuple(asked.request for asked in awaited if asked.is_demand)
        prefetch = tuple(asked.request for asked in awaited if not asked.is_demand)
        if awaited:
            self._connection.send(Fetch(demand=demand, prefetch=prefetch))
        os.eventfd_write(self._notice, 1)

    def _last_words(self) -> Sequence[Completion]:
        """What the dead loader published still counts; then its connection can go."""
        if self._connection.is_open:
            assert self._connection.is_dead(), "the old loader still runs"
            self._ledger.collect(self._connection)
            self._connection.close(says_goodbye=False)
        return [*self.tickets.held.values()]

    def _fail(self, error: SidestageError) -> NoReturn:
        """There is no way on: this and every later call raises."""
        self._failure = error
        os.eventfd_write(self._notice, 1)
        raise error


def _sound_completions() -> Completions:
    """Words in shared memory need ordered stores: x86-64 has them, elsewhere messages are safe."""
    return "word" if platform.machine() in ("x86_64", "AMD64") else "message"
