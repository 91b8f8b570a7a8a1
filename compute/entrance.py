"""The entrance: how a client comes in, and back in after its loader's death.

Owns the tries: how often, with which pauses, until when, and whether an owned loader has to be
restarted first. Knows nothing of tickets but the leases that a successor must be told of.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from compute.connection import Connection, KnownArena
from compute.ledger import Completion
from compute.patience import MAX_RESTARTS_IN_VAIN, TIMEOUT_HINT, RestartBudget
from protocol.errors import LoaderLostError, ProtocolError, RefusedError, SidestageError
from protocol.messages import Knock

_KNOCK_INTERVAL_S = 0.05
#: A loader that is well lets a client in at once: one that takes this long hangs, or a word was lost.
_TRY_S = 2.5


class Entrance:
    """`knock` becomes, once in, one that asks for the same store under the same number."""

    def __init__(
        self,
        endpoint: str,
        knock: Knock,
        timeout_s: float,
        revive: Callable[[], None] | None,
        maps_writable: bool = False,
    ) -> None:
        self.knock = knock
        self._maps_writable = maps_writable
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._revive = revive
        self._restarts = RestartBudget()
        self._leaving = threading.Event()

    def leave(self) -> None:
        """Let a thread that is trying give up."""
        self._leaving.set()

    def enter(self) -> Connection:
        """Come in for the first time. Raises RefusedError, or LoaderLostError when nobody opens in time."""
        until = time.monotonic() + self._timeout_s
        while True:
            try:
                return self._try((), until, None)
            except LoaderLostError as error:
                is_hopeless = not os.path.isdir(os.path.dirname(self._endpoint) or ".")
                if is_hopeless or time.monotonic() > until:
                    raise LoaderLostError(
                        f"{error}; start one with `sidestage loader` and name the endpoint it prints "
                        f"{TIMEOUT_HINT}"
                    ) from error
            time.sleep(_KNOCK_INTERVAL_S)

    def enter_again(
        self,
        how_it_ended: str,
        known: KnownArena,
        num_staged: int,
        last_words: Callable[[], Sequence[Completion]],
    ) -> Connection:
        """Come in to a dead loader's successor; an owned one, dead or hung, is restarted first.

        `last_words` is called once the old loader is certainly dead; it returns the leases that we
        hold. Raises RefusedError, ProtocolError or LoaderLostError when there is no way on.
        """
        until = time.monotonic() + self._timeout_s
        problem = f"it {how_it_ended}"
        while True:
            self._pause(problem, num_staged)
            try:
                if self._revive:
                    self._revive()
                return self._try(last_words(), until, known)
            except (RefusedError, ProtocolError):
                raise
            except (SidestageError, OSError) as error:
                problem = str(error)
            if time.monotonic() > until:
                raise LoaderLostError(
                    f"the loader {how_it_ended} and has not come back within {self._timeout_s:g} s "
                    f"{TIMEOUT_HINT}: {problem}"
                )

    def enter_anew(
        self, known: KnownArena, leases: Callable[[Connection], Sequence[Completion]]
    ) -> Connection:
        """Come in again to a loader that lives. `leases`: those that we hold, asked once it has let us in.

        From then on it tells nothing more to who we were. Raises SidestageError.
        """
        until = time.monotonic() + self._timeout_s
        connection = self._connect(self.knock, self._timeout_s, known)
        return self._greeted(connection, leases(connection), until)

    def _pause(self, problem: str, num_staged: int) -> None:
        pause_s = self._restarts.pause_s(num_staged) if self._revive else _KNOCK_INTERVAL_S
        if pause_s is None:
            raise LoaderLostError(
                f"the loader was restarted {MAX_RESTARTS_IN_VAIN} times and died each time before it "
                f"staged an expert; the last time: {problem}"
            )
        if self._leaving.wait(pause_s):
            raise LoaderLostError("closed while the loader was away")

    def _try(self, leases: Sequence[Completion], until: float, known: KnownArena | None) -> Connection:
        """Through the door, and heard on the bus."""
        until = min(until, time.monotonic() + _TRY_S)
        return self._greeted(self._admitted(until, known), leases, until)

    def _greeted(self, connection: Connection, leases: Sequence[Completion], until: float) -> Connection:
        try:
            held = tuple(lease.ticket for lease in leases if lease.arena is connection.arena)
            connection.greet(held, _rest(until))
        except BaseException:
            connection.close(says_goodbye=False)
            raise
        welcome = connection.welcome
        self.knock = replace(self.knock, store=welcome.store, resume=welcome.client)
        return connection

    def _admitted(self, until: float, known: KnownArena | None) -> Connection:
        """Come in under our old number; a loader with a new arena may have given it to somebody else."""
        try:
            return self._connect(self.knock, _rest(until), known)
        except RefusedError:
            if self.knock.resume < 0:
                raise
            return self._connect(replace(self.knock, resume=-1), _rest(until), known)

    def _connect(self, knock: Knock, timeout_s: float, known: KnownArena | None) -> Connection:
        return Connection(self._endpoint, knock, timeout_s, known, maps_writable=self._maps_writable)


def _rest(until: float) -> float:
    """Seconds left, but time enough for one try."""
    return max(until - time.monotonic(), 0.1)
