"""The lowest of all residents by a formula whose every value changes with time.

For policies whose score cannot wait in a heap: vector work over all keys, nothing per key in Python.
"""

from collections.abc import Container

import numpy as np

from compute.policies.base import FloatArray

#: Up to this many victims are found one by one; beyond, by sorting.
FEW = 4


class ResidentScores:
    """Knows who is resident; `lowest` ranks them by the scores it is given."""

    __slots__ = ("_absent", "_ranked")

    def __init__(self, num_keys: int) -> None:
        self._absent = np.full(num_keys, np.inf, dtype=np.float32)
        self._ranked = np.empty(num_keys, dtype=np.float32)

    def __contains__(self, key: int) -> bool:
        return bool(self._absent[key] == 0.0)

    def insert(self, key: int) -> None:
        self._absent[key] = 0.0

    def remove(self, key: int) -> None:
        self._absent[key] = np.inf

    def lowest(self, scores: FloatArray, count: int, held: Container[int]) -> list[int]:
        """Up to `count` residents outside `held`, the lowest of `scores` [num_keys] first; equals by key."""
        ranked = np.add(scores, self._absent, out=self._ranked)
        return self._one_by_one(count, held) if count <= FEW else _sorted(ranked, count, held)

    def _one_by_one(self, count: int, held: Container[int]) -> list[int]:
        ranked, victims = self._ranked, list[int]()
        while len(victims) < count:
            key = int(ranked.argmin())
            if ranked[key] == np.inf:
                break
            ranked[key] = np.inf
            if key not in held:
                victims.append(key)
        return victims


def _sorted(ranked: FloatArray, count: int, held: Container[int]) -> list[int]:
    victims: list[int] = []
    for key in ranked.argsort(kind="stable").tolist():
        if len(victims) == count or ranked[key] == np.inf:
            break
        if key not in held:
            victims.append(key)
    return victims
