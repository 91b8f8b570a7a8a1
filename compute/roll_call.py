"""The roll call: has the loader heard every command? Asked only when nothing has ended for a while.

Pure; times are passed in, in seconds. The loader answers with the number of commands that it has
heard in this session: fewer than were sent before the question, and one was lost.
"""

from dataclasses import dataclass

#: A silence this long is odd, and so is an answer that takes this long.
ROLL_CALL_S = 1.0
#: A loader whose loop went round this often has read what had arrived.
_FAIR_TURNS = 10


@dataclass(slots=True)
class RollCall:
    """One question at a time."""

    _quiet_since: float = 0.0
    _asked_at: float | None = None
    _num_sent: int = 0
    _turns: int = 0

    def note_progress(self, now: float) -> None:
        """Something has ended: there is nothing to ask."""
        self._quiet_since, self._asked_at = now, None

    def is_due(self, now: float) -> bool:
        """The question should be asked now."""
        return self._asked_at is None and now - self._quiet_since >= ROLL_CALL_S

    def ask(self, now: float, num_sent: int, turns: int) -> None:
        """The question was sent, as command number `num_sent` of the session."""
        self._asked_at, self._num_sent, self._turns = now, num_sent, turns

    def has_lost(self, now: float, num_heard: int | None, turns: int) -> bool:
        """A command was lost. `num_heard` is the answer, None while there is none."""
        if self._asked_at is None:
            return False
        if num_heard is None:
            return now - self._asked_at >= ROLL_CALL_S and turns - self._turns >= _FAIR_TURNS
        self.note_progress(now)
        return num_heard < self._num_sent
