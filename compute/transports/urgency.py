"""What is due first: demand before prefetch, then the earliest deadline, then the first come.

Pure: it orders numbers and knows nothing of what they stand for.
"""

from heapq import heappop, heappush

_Rank = tuple[bool, int, int]


class UrgencyQueue:
    """Distinct numbers, each with its urgency. Every operation is O(log n)."""

    def __init__(self) -> None:
        self._ranks: dict[int, _Rank] = {}
        # Ranks are unique: an entry whose rank is not its number's any more is out of date.
        self._entries: list[tuple[_Rank, int]] = []
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._ranks)

    def __contains__(self, number: int) -> bool:
        return number in self._ranks

    def add(self, number: int, *, is_demand: bool, deadline: int) -> None:
        """Queue `number`, or give it a new urgency; `deadline` is the layer-step that needs it."""
        self._arrivals += 1
        rank = (not is_demand, deadline, self._arrivals)
        self._ranks[number] = rank
        heappush(self._entries, (rank, number))

    def remove(self, number: int) -> bool:
        """Forget `number`. False: it was not queued."""
        return self._ranks.pop(number, None) is not None

    def first(self) -> int | None:
        """The most urgent number, which stays queued."""
        while self._entries:
            rank, number = self._entries[0]
            if self._ranks.get(number) == rank:
                return number
            heappop(self._entries)
        return None
