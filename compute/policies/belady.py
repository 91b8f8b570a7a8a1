"""belady: the one whose next use is farthest leaves first; the bound of all who always admit. Offline.

Rule: L. A. Belady, IBM Systems Journal 5(2), 1966, with a layer-step's whole set as one request.
It counts the layer-steps it is shown, so it must be shown exactly those it was told. Exact where no
layer-step needs more experts than there are slots; one that does admits nobody, foreseen or not.
"""

from collections.abc import Container, Sequence

from compute.policies.base import CacheShape, FloatArray
from compute.policies.future import Future
from compute.policies.victim_heap import VictimHeap


class Belady:
    needs_probs = False
    needs_future = True

    def __init__(self, shape: CacheShape, future: Sequence[Sequence[int]]) -> None:
        self._future = future if isinstance(future, Future) else Future.of(future)
        self._next_uses = self._future.next_uses()
        self._step = 0
        self._heap = VictimHeap()

    # --- observing ---------------------------------------------------------------------------

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        pass

    def on_access(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> None:
        heap = self._heap
        for key, next_use in zip(keys, self._next_uses_now(), strict=True):
            if key in heap:
                heap.place(key, -next_use)
        self._step += 1

    def on_insert(self, key: int, is_speculative: bool) -> None:
        # A demand's real turn follows in `on_access`.
        next_use = self._future.next_use_after(self._step - 1, key) if is_speculative else self._step
        self._heap.place(key, -next_use)

    def on_evict(self, key: int) -> None:
        self._heap.remove(key)

    # --- asking ------------------------------------------------------------------------------

    def choose_victims(self, count: int, held: Container[int]) -> list[int]:
        return self._heap.lowest(count, held)

    # --- the future --------------------------------------------------------------------------

    def _next_uses_now(self) -> list[int]:
        """The next use of each key of the layer-step under way."""
        start = self._future.start
        now: list[int] = self._next_uses[start[self._step] : start[self._step + 1]].tolist()
        return now
