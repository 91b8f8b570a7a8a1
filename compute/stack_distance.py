"""Stack distances: LRU's hit rate at every capacity, from one look at a trace.

A layer-step is one event: all its experts are looked up in the order of recency as it was before
the step, then they move to the front together, as `compute.policies.lru` does. Source: Mattson,
Gecsei, Slutz and Traiger, IBM Systems Journal 9(2), 1970, with a step's whole set as one request.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compute.arrays import IntArray
from compute.layer_steps import LayerSteps


@dataclass(frozen=True, slots=True, eq=False)
class StackDistances:
    """How many lookups LRU answers with how many slots.

    `num_at[d]` lookups found their expert at place d, the most recent being 1; those that found it
    nowhere are in none. True for `least_slots` and more: below, a step needs more experts than
    there are slots, and residents stay.
    """

    num_at: IntArray
    num_lookups: int
    least_slots: int

    @property
    def num_cold(self) -> int:
        """Lookups of experts that were never used before: every cache misses them."""
        return self.num_lookups - int(self.num_at.sum())

    def hits(self, num_slots: int) -> int:
        """Of LRU with one pool of that many slots. Raises ValueError below `least_slots`."""
        if num_slots < self.least_slots:
            raise ValueError(f"{num_slots} slots: a layer-step here uses up to {self.least_slots} experts")
        return int(self.num_at[: num_slots + 1].sum())


def stack_distances(steps: LayerSteps) -> StackDistances:
    """Of one pool over all layers."""
    num_keys = steps.num_layers * steps.num_experts
    used_at = np.full(num_keys, -1, dtype=np.int64)
    num_at = np.zeros(num_keys + 1, dtype=np.int64)
    for first, end in zip(steps.step_of_pass[:-1].tolist(), steps.step_of_pass[1:].tolist()):
        low, high = int(steps.start[first]), int(steps.start[end])
        keys = steps.keys[low:high]
        sizes = np.diff(steps.start[first : end + 1])
        places = _places(used_at, keys, np.repeat(steps.start[first:end] - low, sizes))
        num_at += np.bincount(places, minlength=num_keys + 1)
        used_at[keys] = np.arange(low, high)
    most = int(np.diff(steps.start).max(initial=1))
    num_at[0] = 0
    return StackDistances(num_at, steps.num_lookups, max(most, steps.top_k))


def _places(used_at: IntArray, keys: IntArray, num_before: IntArray) -> IntArray:
    """The place of each of a pass's `keys` in the order of recency before its step; 0 if it has none.

    used_at [all keys]: the lookup that used each last, before the pass. num_before: how many of
    the pass's lookups came before each one's step. A pass uses no key twice.
    """
    before = used_at[keys]
    order = np.sort(used_at)
    deeper = len(order) - np.searchsorted(order, before, side="right")
    is_earlier: npt.NDArray[np.bool_] = np.arange(len(keys))[None, :] < num_before[:, None]
    counted_twice = np.count_nonzero(is_earlier & (before[None, :] > before[:, None]), axis=1)
    places: IntArray = np.where(before < 0, 0, 1 + deeper + num_before - counted_twice)
    return places
