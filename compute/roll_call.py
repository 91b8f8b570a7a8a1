"""The roll call: has the loader heard every command? Asked only when nothing has ended for a while.

Pure; times are passed in, in seconds. The loader answers with the number of commands that it has
heard in this session: fewer than were sent before the question, and one was lost.
"""

from dataclasses import dataclass
from enum import Enum

#: A silence this long is odd, and so is an answer that takes this long.
ROLL_CALL_S = 1.0
#: A loader whose loop went round this often has read what had arrived.
_FAIR_TURNS = 10


class Heard(Enum):
    """What is known of our commands."""

    UNKNOWN = "unknown"
    ALL = "all"
    NOT_ALL = "not all"


@dataclass(slots=True)
class RollCall:
    """One question at a time."""

    _quiet_since: float = 0.0
    _asked_at: float | None = None
    _turns: int = 0

    def note_progress(self, now: float) -> None:
        """Something has ended: there is no need to ask."""
        self._quiet_since = now

    @property
    def is_under_way(self) -> bool:
        """The question was asked."""
        return self._asked_at is not None

    def is_due(self, now: float) -> bool:
        """There is silence, and the question should be asked now."""
        return self._asked_at is None and now - self._quiet_since >= ROLL_CALL_S

    def ask(self, now: float, turns: int) -> None:
        """The question was sent."""
        self._asked_at, self._turns = now, turns

    def judge(self, now: float, num_lost: int | None, turns: int) -> Heard:
        """`num_lost` by the loader's answer, None while there is none; a question may be lost itself."""
        if self._asked_at is None:
            return Heard.UNKNOWN
        if num_lost is None:
            is_overdue = now - self._asked_at >= ROLL_CALL_S and turns - self._turns >= _FAIR_TURNS
            return Heard.NOT_ALL if is_overdue else Heard.UNKNOWN
        self._quiet_since, self._asked_at = now, None
        return Heard.NOT_ALL if num_lost else Heard.ALL
