"""An inquiry: the loader's counters, asked until an answer to one's own question comes.

Asked again when the question or its loader is lost. Not thread-safe: its client locks.
"""

from compute.connection import Connection
from compute.roll_call import ROLL_CALL_S
from compute.session import Session


class Inquiry:
    """Call `answer` until there is one."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._asked_of: Connection | None = None
        self._question = 0
        self._again_at = 0.0

    def answer(self, now: float) -> dict[str, int] | None:
        """Counters by name, None while they are on their way. Raises what the session does.

        What the loader complains of is settled first.
        """
        session = self._session
        if session.connection.is_dead():
            session.recover()
        if self._asked_of is not session.connection or now > self._again_at:
            self._ask(now)
        session.hear()
        is_told = self._asked_of is session.connection and session.connection.answered >= self._question
        return session.ledger.stats if is_told and not session.has_complaint else None

    def _ask(self, now: float) -> None:
        """If the loader turns out to be dead, its successor is asked the next time."""
        question = self._session.connection.next_question()
        self._asked_of, self._question = self._session.connection, question.question
        self._again_at = now + ROLL_CALL_S
        self._session.post(question)
