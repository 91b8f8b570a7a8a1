"""Keeps a loader alive: starts another on the same arena when one has died or hangs, within reason.

Knows the loader's process and its turn counter, nothing of clients: they find the new one.
"""

import logging
import time

from compute.loader_process import OwnedLoader
from compute.patience import RestartBudget, timeout_setting
from protocol.errors import LoaderLostError

#: A loader that lived this long was of use: its death is the first of a new row.
LONG_LIFE_S = 10.0

_log = logging.getLogger("sidestage")


class Keeper:
    """Looks after one loader; call `look` every now and then."""

    def __init__(self, loader: OwnedLoader, timeout_s: float | None) -> None:
        self._loader = loader
        self._patience_s = timeout_setting(timeout_s) / 2
        self._budget = RestartBudget()
        self._num_long_lives = 0
        self._born_at = self._turned_at = time.monotonic()
        self._turns = loader.turns

    def look(self, now: float) -> None:
        """Restart the loader if it is dead or has stood still for half the timeout.

        Raises LoaderLostError when that was done in vain too often, SidestageError with the new
        loader's sentence when it does not come up.
        """
        turns = self._loader.turns
        if turns != self._turns:
            self._turns, self._turned_at = turns, now
        if not self._loader.is_alive:
            self._restart(now, "has died")
        elif now - self._turned_at > self._patience_s:
            self._restart(now, f"has stood still for {self._patience_s:g} s")

    def _restart(self, now: float, what: str) -> None:
        self._num_long_lives += now - self._born_at > LONG_LIFE_S
        pause_s = self._budget.pause_s(self._num_long_lives)
        if pause_s is None:
            raise LoaderLostError(
                f"the loader {what}, {self._budget.num_in_vain + 1} times in a row: "
                "run `sidestage doctor`, it looks for the reason"
            )
        _log.warning("the loader (pid %d) %s: starting another on the same arena", self._loader.pid, what)
        time.sleep(pause_s)
        self._loader.restart()
        self._born_at = self._turned_at = time.monotonic()
        self._turns = self._loader.turns
