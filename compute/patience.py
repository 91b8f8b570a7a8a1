"""How long a client waits for its loader, and how often it restarts one.

Pure: times are passed in, in seconds; `turns` is how often the loader's loop has gone round.
"""

import os
from dataclasses import dataclass
from enum import Enum

TIMEOUT_VARIABLE = "SIDESTAGE_TIMEOUT"
DEFAULT_TIMEOUT_S = 30.0
TIMEOUT_HINT = f"(raise --timeout or {TIMEOUT_VARIABLE})"

#: A loader whose loop stands still for this long hangs: it turns at least every 50 ms.
HUNG_S = 2.0

#: Restarts in a row, none of which staged an expert, before an owner gives up.
MAX_RESTARTS_IN_VAIN = 5
BACKOFF_S = 0.1


def timeout_setting(timeout_s: float | None = None) -> float:
    """Seconds that a wait for the loader may last: as given, else SIDESTAGE_TIMEOUT, else 30.

    Raises ValueError.
    """
    given = os.environ.get(TIMEOUT_VARIABLE) or DEFAULT_TIMEOUT_S if timeout_s is None else timeout_s
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e6:
        raise ValueError(
            f"a timeout of {given} seconds: a number above 0 is needed (--timeout, {TIMEOUT_VARIABLE})"
        )
    return seconds


def hung_after_s(timeout_s: float) -> float:
    """How long a loader's loop may stand still: never longer than half the timeout."""
    return min(HUNG_S, timeout_s / 2)


class Verdict(Enum):
    """What to do about a loader of which nothing was heard lately."""

    WAIT = "wait"
    HUNG = "hung"
    OVER = "over"


@dataclass(slots=True)
class Patience:
    """Counts from the last progress: an expert staged, or the first one asked for after a rest."""

    timeout_s: float
    _progress_at: float = 0.0
    _turns: int = 0
    _turned_at: float = 0.0

    def note_progress(self, now: float, turns: int) -> None:
        self._progress_at = self._turned_at = now
        self._turns = turns

    def judge(self, now: float, turns: int) -> Verdict:
        """OVER after the timeout without progress, HUNG when the loop stands still for `hung_after_s`."""
        if turns != self._turns:
            self._turns, self._turned_at = turns, now
        if now - self._progress_at > self.timeout_s:
            return Verdict.OVER
        return Verdict.HUNG if now - self._turned_at > hung_after_s(self.timeout_s) else Verdict.WAIT


@dataclass(slots=True)
class RestartBudget:
    """Restarts of an owned loader: a few in a row, each after a longer pause, while none bears fruit."""

    num_in_vain: int = 0
    _num_staged: int = -1

    def pause_s(self, num_staged: int) -> float | None:
        """How long to pause before the next restart; None: give up. `num_staged`: experts staged so far."""
        if num_staged != self._num_staged:
            self._num_staged, self.num_in_vain = num_staged, 0
        if self.num_in_vain >= MAX_RESTARTS_IN_VAIN:
            return None
        pause_s: float = BACKOFF_S * ((1 << self.num_in_vain) - 1)
        self.num_in_vain += 1
        return pause_s
