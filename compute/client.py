"""The loader's client: what a compute process knows of the loader.

Says what is wanted and what is given back, and hears how tickets end; the session beneath it
survives the loader's death. Knows nothing of slots, of policies or of what bytes mean.
Every method may be called from any thread, but only one thread may be in `wait` at a time.
"""

import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

from compute.inquiry import Inquiry
from compute.ledger import Completion, poll_fds
from compute.patience import TIMEOUT_HINT, timeout_setting
from compute.session import Session
from protocol.arena import Arena
from protocol.errors import LoaderLostError
from protocol.messages import PROTOCOL_VERSION, Completions, Fetch, Knock, Release, Report
from protocol.timeline import Timeline

#: (key, deadline): an expert and the layer-step that needs it.
Wanted = tuple[int, int]

SPIN_US = 20

_TICK_S = 0.25
_STATS_INTERVAL_S = 0.005


class LoaderClient:
    """A client of the loader whose door is at `endpoint`, with a quota of `quota` frames.

    `store`: the fingerprint that the loader must serve, "" for whichever it does.
    `completions`: None chooses words in the arena where that is sound, messages elsewhere.
    `timeout_s`: None takes SIDESTAGE_TIMEOUT, else 30.
    `revive`: restarts a loader that the caller owns; called when it is found dead or hung.
    `maps_writable`: the arena can be page-locked; it is not written to all the same.
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
        maps_writable: bool = False,
    ) -> None:
        """Come in. Raises RefusedError, or LoaderLostError when no loader answers in time."""
        completions = completions or _sound_completions()
        self.endpoint = os.fspath(endpoint)
        self.timeout_s = timeout_setting(timeout_s)
        self.quota = quota
        self._timeline = timeline
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._told_at = -1
        self.is_closed = False
        knock = Knock(PROTOCOL_VERSION, quota, store, completions, -1)
        self._session = Session(self.endpoint, knock, self.timeout_s, revive, maps_writable)
        self.tickets = self._session.tickets

    # --- what the loader said at the door ------------------------------------------------------

    @property
    def arena(self) -> Arena:
        return self._session.arena

    @property
    def store(self) -> str:
        """The fingerprint of the store that is served."""
        return self._session.connection.welcome.store

    @property
    def store_path(self) -> str:
        return self._session.connection.welcome.store_path

    @property
    def num_restarts(self) -> int:
        """Loaders that died under us and were followed by another."""
        return self._session.num_restarts

    @property
    def num_renewals(self) -> int:
        """Sessions begun anew with a living loader, because a command was lost."""
        return self._session.num_renewals

    @property
    def loader_pid(self) -> int:
        return self._session.connection.loader_pid

    def flow_id(self, ticket: int) -> int:
        """The number of the ticket's arrow in the timeline."""
        return self._session.connection.welcome.client << 24 | ticket

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
                self._session.note_progress()
            returned = self._give_up(released)
            cancel = [ticket for ticket in cancel if ticket in self.tickets.asked]
            promote = [ticket for ticket in promote if ticket in self.tickets.asked]
            self.tickets.cancel(cancel)
            self.tickets.promote(promote)
            demands = tuple(self.tickets.ask(*wanted, is_demand=True) for wanted in demand)
            prefetches = tuple(self.tickets.ask(*wanted, is_demand=False) for wanted in prefetch)
            order = Fetch(demands, prefetches, tuple(promote), tuple(cancel), returned, tuple(evicted))
            self._session.post(order)
            tickets = [request.ticket for request in (*demands, *prefetches)]
            if self._timeline:
                self._draw(self._timeline, tickets, start_ns)
            return tickets

    def release(self, tickets: Sequence[int]) -> None:
        """Give leases back without asking for anything."""
        with self._lock:
            self._check_usable()
            self._session.post(Release(self._give_up(tickets)))

    def report(self, report: Report) -> None:
        """For whoever observes. Nothing is waited for: a loader that is away hears nothing."""
        with self._lock:
            self._check_usable()
            turns = self._session.turns
            if turns != self._told_at and not self._session.is_away:
                self._told_at = turns
                self._session.has_sent(report)

    # --- hearing -------------------------------------------------------------------------------

    def completed(self) -> list[Completion]:
        """Tickets that have ended since the last call, each once. Does not wait for any."""
        with self._lock:
            self._check_usable()
            return self._session.collect()

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
        inquiry = Inquiry(self._session)
        while time.monotonic() < until:
            with self._lock:
                self._check_usable()
                if (answer := inquiry.answer(time.monotonic())) is not None:
                    return {**answer, "loader_restarts": self.num_restarts}
                fd = self._session.connection.bus.fileno
            poll_fds((fd,), _STATS_INTERVAL_S)
        raise LoaderLostError(f"the loader gave no counters within {self.timeout_s:g} s {TIMEOUT_HINT}")

    def interrupt(self) -> None:
        """Let a thread that looks for the loader's successor give up; `close` is to follow."""
        self._session.entrance.leave()

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
                self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # --- sending, with the lock held -----------------------------------------------------------

    def _check_usable(self) -> None:
        if failure := self._session.failure:
            raise type(failure)(str(failure)) from failure
        if self.is_closed:
            raise RuntimeError("this client of the loader has been closed")
        if os.getpid() != self._owner:
            raise RuntimeError("a client of the loader does not survive a fork: make one in each process")

    def _give_up(self, tickets: Sequence[int]) -> tuple[int, ...]:
        """End these leases here; returns those that the loader has to hear of."""
        leases = [self.tickets.release(ticket) for ticket in tickets]
        return tuple(lease.ticket for lease in leases if lease.arena is self.arena)

    def _draw(self, timeline: Timeline, tickets: list[int], start_ns: int) -> None:
        timeline.span("fetch", "fetch", start_ns, time.monotonic_ns(), experts=len(tickets))
        for ticket in tickets:
            timeline.flow("s", self.flow_id(ticket), "fetch", start_ns)

    # --- waiting -------------------------------------------------------------------------------

    def _sleep(self, wake: Sequence[int]) -> bool:
        """Block until there may be news. True: an fd in `wake` is readable."""
        with self._lock:
            self._check_usable()
            if self._session.has_news():
                return False
            connection, fds = self._session.connection, self._session.fds()
        ready = poll_fds([*fds, *wake], min(_TICK_S, self.timeout_s / 4))
        with self._lock:
            self._check_usable()
            self._session.look(connection, ready)
        return not ready.isdisjoint(wake)


def _sound_completions() -> Completions:
    """Words in shared memory need ordered stores: x86-64 has them, elsewhere messages are safe."""
    return "word" if platform.machine() in ("x86_64", "AMD64") else "message"
