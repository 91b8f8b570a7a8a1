"""lfu: the least frequently used leaves first; equals by recency.

Rule: arXiv 2511.05814; forgetting at a sequence's start: HOBBIT (arXiv 2411.01433).
Counts are of forward passes, and are kept for experts that are not resident, too.
Options: `decay` multiplies all counts at every pass (decode: a token), `reset` forgets them at a
new sequence.
"""

from collections.abc import Container, Sequence

from compute.policies.base import CacheShape, FloatArray
from compute.policies.victim_heap import VictimHeap

#: A count's unit grows by 1/decay a pass instead of all counts shrinking; at this size all are rescaled.
LARGEST_UNIT = 1e12


class Lfu:
    needs_probs = False

    def __init__(self, shape: CacheShape, decay: float = 1.0, reset: bool = False) -> None:
        if not 0.0 < decay <= 1.0:
            raise ValueError(f"decay {decay} is not within 0 (excluded) and 1")
        self._decay = decay
        self._reset = reset
        self._unit = 1.0
        self._counts = [0.0] * (shape.num_layers * shape.num_experts)
        self._heap = VictimHeap()

    # --- observing ---------------------------------------------------------------------------

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        if is_new_sequence and self._reset:
            self._scale(0.0)
        self._unit /= self._decay
        if self._unit > LARGEST_UNIT:
            self._scale(1.0 / self._unit)
            self._unit = 1.0

    def on_access(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> None:
        counts, unit, heap = self._counts, self._unit, self._heap
        for key in keys:
            counts[key] += unit
            if key in heap:
                heap.place(key, counts[key])

    def on_insert(self, key: int, is_speculative: bool) -> None:
        self._heap.place(key, self._counts[key])

    def on_evict(self, key: int) -> None:
        self._heap.remove(key)

    # --- asking ------------------------------------------------------------------------------

    def choose_victims(self, count: int, held: Container[int]) -> list[int]:
        return self._heap.lowest(count, held)

    # --- edges -------------------------------------------------------------------------------

    def _scale(self, factor: float) -> None:
        self._counts = [count * factor for count in self._counts]
        self._heap.scale(factor)
