"""A heap of resident keys by priority, for policies whose priorities change on access only.

Outdated entries stay until they surface or outnumber the live ones, so that every operation costs
O(log n) in the mean. Equal priorities leave in the order in which they were placed.
"""

from collections.abc import Container
from heapq import heapify, heappop, heappush

Entry = tuple[float, int, int]


class VictimHeap:
    """`place` a key when its priority changes, `remove` it when it leaves; the lowest leave first."""

    __slots__ = ("_clock", "_heap", "_live")

    def __init__(self) -> None:
        self._heap: list[Entry] = []
        self._live: dict[int, Entry] = {}
        self._clock = 0

    def __contains__(self, key: int) -> bool:
        return key in self._live

    def __len__(self) -> int:
        return len(self._live)

    def place(self, key: int, priority: float) -> None:
        self._clock += 1
        entry = (priority, self._clock, key)
        self._live[key] = entry
        heappush(self._heap, entry)
        if len(self._heap) > 4 * len(self._live) + 64:
            self._compact()

    def remove(self, key: int) -> None:
        del self._live[key]

    def priority(self, key: int) -> float:
        return self._live[key][0]

    def scale(self, factor: float) -> None:
        """Multiply every priority by a positive factor; nobody's turn changes."""
        self._live = {key: (p * factor, clock, key) for key, (p, clock, _) in self._live.items()}
        self._compact()

    def lowest(self, count: int, held: Container[int]) -> list[int]:
        """Up to `count` keys outside `held`, the lowest first. Nobody leaves the heap."""
        seen: list[Entry] = []
        victims: list[int] = []
        heap, live = self._heap, self._live
        while heap and len(victims) < count:
            entry = heappop(heap)
            key = entry[2]
            if live.get(key) is not entry:
                continue
            seen.append(entry)
            if key not in held:
                victims.append(key)
        for entry in seen:
            heappush(heap, entry)
        return victims

    def _compact(self) -> None:
        self._heap = list(self._live.values())
        heapify(self._heap)
