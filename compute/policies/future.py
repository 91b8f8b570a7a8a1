"""The layer-steps to come, for policies that are told the future.

Two flat arrays, so that millions of lookups cost bytes, not objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from compute.arrays import IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Future(Sequence[Sequence[int]]):
    """`future[step]` are the keys of that layer-step, ascending: keys[start[step]:start[step + 1]]."""

    keys: IntArray
    start: IntArray

    @classmethod
    def of(cls, steps: Sequence[Sequence[int]]) -> Future:
        start = np.cumsum([0, *map(len, steps)], dtype=np.int64)
        return cls(np.array([key for step in steps for key in step], dtype=np.int64), start)

    def __len__(self) -> int:
        return len(self.start) - 1

    def __getitem__(self, step: int) -> list[int]:  # type: ignore[override]
        return [int(key) for key in self.keys[self.start[step] : self.start[step + 1]]]

    def __iter__(self) -> Iterator[list[int]]:
        return (self[step] for step in range(len(self)))

    @property
    def never(self) -> int:
        """The step number that stands for "not used again"."""
        return len(self)

    def next_uses(self) -> IntArray:
        """For each entry of `keys`: the step in which that key is used next, or `never`."""
        step_of = np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.start))
        order = np.argsort(self.keys, kind="stable")
        is_same = self.keys[order][:-1] == self.keys[order][1:]
        next_uses = np.full(len(self.keys), self.never, dtype=np.int64)
        next_uses[order[:-1][is_same]] = step_of[order[1:][is_same]]
        return next_uses

    def next_use_after(self, step: int, key: int) -> int:
        """The first step after `step` in which `key` is used, or `never`. Slow: one pass over all."""
        first = int(self.start[min(step + 1, len(self))])
        found = np.flatnonzero(self.keys[first:] == key)
        if not found.size:
            return self.never
        return int(np.searchsorted(self.start, first + found[0], side="right")) - 1
