"""Keeps a loader alive: starts another on the same arena when one has died or hangs, within reason.

Knows the loader's process and its turn counter, nothing of clients: they find the new one.
"""

import logging
import time

from compute.loader_process import OwnedLoader
from compute.patience import RestartBudget, hung_after_s, timeout_setting
from protocol.errors import LoaderLostError, SidestageError

#: A loader that lived this long, or ended a ticket, was of use: its death is the first of a new row.
LONG_LIFE_S = 10.0

_log = logging.getLogger("sidestage")


class Keeper:
    """Looks after one `loader`; call `look` every now and then."""

    def __init__(self, loader: OwnedLoader, timeout_s: float | None) -> None:
        self.loader = loader
        self._patience_s = hung_after_s(timeout_setting(timeout_s))
        self._budget = RestartBudget()
        self._num_useful_lives = 0
        self._progress = loader.progress
        self._problem = ""
        self._born_at = self._turned_at = time.monotonic()
        self._turns = loader.turns

    def look(self, now: float) -> None:
        """Restart the loader if it is dead or hangs.

        One that does not come up is tried again at the next look. Raises LoaderLostError, with the
        last one's sentence, when that was done in vain too often.
        """
        turns = self.loader.turns
        if turns != self._turns:
            self._turns, self._turned_at = turns, now
        if not self.loader.is_alive:
            self._restart(now, "has died")
        elif now - self._turned_at > self._patience_s:
            self._restart(now, f"has stood still for {self._patience_s:g} s")

    def _restart(self, now: float, what: str) -> None:
        was_of_use = now - self._born_at > LONG_LIFE_S or self.loader.progress != self._progress
        self._num_useful_lives += was_of_use
        pause_s = self._budget.pause_s(self._num_useful_lives)
        if pause_s is None:
            raise LoaderLostError(
                f"the loader {what}, {self._budget.num_in_vain + 1} times in a row{self._problem}: "
                "run `sidestage doctor`, it looks for the reason"
            )
        _log.warning("the loader (pid %d) %s: starting another on the same arena", self.loader.pid, what)
        time.sleep(pause_s)
        try:
            self.loader.restart()
            self._problem = ""
        except SidestageError as error:
            _log.warning("the loader did not come up: %s", error)
            self._problem = f" ({error})"
        self._progress = self.loader.progress
        self._born_at = self._turned_at = time.monotonic()
        self._turns = self.loader.turns
