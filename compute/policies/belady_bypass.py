"""belady-bypass: belady that may serve an expert without keeping it; the bound of all. Offline.

Of the residents and a layer-step's experts together, those stay whose next use is nearest (the
optimum with bypass, e.g. Michaud, TACO 13(4), 2016). The bound may even drop what a step has just used,
which no policy in a slot table may: so the replay does not drive it, but takes `fewest_misses`.
Driven all the same, it is the greedy policy that comes closest.
"""

from collections.abc import Container, Sequence
from itertools import pairwise

from compute.policies.base import CacheShape
from compute.policies.belady import Belady
from compute.policies.victim_heap import VictimHeap


class BeladyBypass(Belady):
    def __init__(self, shape: CacheShape, future: Sequence[Sequence[int]]) -> None:
        super().__init__(shape, future)
        self._num_slots = shape.num_slots

    def choose_admitted(self, missing: Sequence[int], num_free: int, held: Container[int]) -> list[int]:
        next_use = dict(zip(self._future[self._step], self._next_uses_now(), strict=True))
        newcomers = sorted(missing, key=next_use.__getitem__)
        leavers = self._heap.lowest(len(missing) - num_free, held)
        admitted = newcomers[:num_free]
        for newcomer, leaver in zip(newcomers[num_free:], leavers, strict=False):
            if next_use[newcomer] >= -self._heap.priority(leaver):
                break
            admitted.append(newcomer)
        return admitted

    def fewest_misses(self) -> tuple[int, int]:
        """Misses that nobody can avoid over the whole future, and the evictions on that way."""
        kept = VictimHeap()
        misses, evictions = 0, 0
        bounds = self._future.start.tolist()
        for begin, end in pairwise(bounds):
            keys = self._future.keys[begin:end].tolist()
            missing = [key for key in keys if key not in kept]
            misses += len(missing)
            for key, next_use in zip(keys, self._next_uses[begin:end].tolist(), strict=True):
                kept.place(key, -next_use)
            leavers = kept.lowest(len(kept) - self._num_slots, ())
            for key in leavers:
                kept.remove(key)
            evictions += len(set(leavers).difference(missing))
        return misses, evictions
