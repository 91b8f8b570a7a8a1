"""Probation: guesses, the experts fetched ahead of need that no layer-step has used yet.

Owns when each is meant to be used: its deadline, a layer-step. Knows no slots: whether a guess is
on its way or there is the residency's to say.
"""

from collections.abc import Iterable, Iterator


class Probation:
    """Guesses by key, in the order in which they were made."""

    __slots__ = ("_deadline",)

    def __init__(self) -> None:
        self._deadline: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._deadline)

    def __contains__(self, key: object) -> bool:
        return key in self._deadline

    def __iter__(self) -> Iterator[int]:
        return iter(self._deadline)

    def enter(self, key: int, deadline: int) -> None:
        """`key` is fetched for layer-step `deadline`."""
        self._deadline[key] = deadline

    def leave(self, key: int) -> bool:
        """`key` was used, evicted or dropped. Returns whether it was a guess."""
        return self._deadline.pop(key, None) is not None

    def leave_all(self, keys: Iterable[int]) -> int:
        """Returns how many of `keys` were guesses."""
        return sum(map(self.leave, keys))

    def renew(self, key: int, deadline: int) -> None:
        """If `key` is a guess, it is wanted for `deadline` too; the later one counts."""
        if deadline > self._deadline.get(key, deadline):
            self._deadline[key] = deadline

    def gone_by(self, clock: int) -> list[int]:
        """Guesses that layer-step `clock`, or one before it, has shown to be wrong or too late."""
        return [key for key, deadline in self._deadline.items() if deadline <= clock]

    def farthest_first(self) -> list[int]:
        """All guesses, the one with the latest deadline first."""
        return sorted(self._deadline, key=self._deadline.__getitem__, reverse=True)
