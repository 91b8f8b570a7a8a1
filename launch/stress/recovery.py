"""How long experts stayed away after the loader was hit: until its successor has brought one.

Pure: times are passed in, in seconds.
"""

from dataclasses import dataclass, field


@dataclass(slots=True)
class RecoveryClock:
    """One hit at a time; a second hit before the recovery counts from the first."""

    seconds: list[float] = field(default_factory=list)
    _hit_at: float | None = None
    _num_restarts: int = 0
    _transfers_then: int | None = None

    @property
    def is_under_way(self) -> bool:
        """The loader was hit, and no expert has come since."""
        return self._hit_at is not None

    def hit(self, now: float, num_restarts: int) -> None:
        """The loader was killed or stopped."""
        if self._hit_at is None:
            self._hit_at, self._num_restarts, self._transfers_then = now, num_restarts, None

    def look(self, now: float, num_restarts: int, transfers: int) -> None:
        """`transfers`: experts that have reached any client so far."""
        if self._hit_at is None or num_restarts == self._num_restarts:
            return
        if self._transfers_then is None:
            self._transfers_then = transfers
        elif transfers > self._transfers_then:
            self.seconds.append(now - self._hit_at)
            self._hit_at = None
