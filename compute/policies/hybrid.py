"""hybrid: the lowest product of popularity and freshness leaves first.

Rule: MoEpic's P = mu * rho ** (nu / omega); mu uses so far, nu tokens since the last one.
Since nu grows alike for all, log P's order changes on a use only, and a heap holds it.
Reconstructed: a token is a forward pass; uses count for absent experts, too.
"""

from collections.abc import Container, Sequence
from math import log

from compute.policies.base import CacheShape, FloatArray
from compute.policies.victim_heap import VictimHeap


class Hybrid:
    needs_probs = False

    def __init__(self, shape: CacheShape, rho: float = 0.25, omega: float = 128.0) -> None:
        if not (0.0 < rho < 1.0 and omega > 0.0):
            raise ValueError(f"rho {rho} must lie between 0 and 1, and omega {omega} above 0")
        self._gain_per_pass = -log(rho) / omega
        self._pass = 0
        num_keys = shape.num_layers * shape.num_experts
        self._count = [0] * num_keys
        self._last = [0] * num_keys
        self._heap = VictimHeap()

    # --- observing ---------------------------------------------------------------------------

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        self._pass += 1

    def on_access(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> None:
        for key in keys:
            self._count[key] += 1
            self._last[key] = self._pass
            if key in self._heap:
                self._heap.place(key, self._log_popularity(key))

    def on_insert(self, key: int, is_speculative: bool) -> None:
        self._heap.place(key, self._log_popularity(key))

    def on_evict(self, key: int) -> None:
        self._heap.remove(key)

    # --- asking ------------------------------------------------------------------------------

    def choose_victims(self, count: int, held: Container[int]) -> list[int]:
        return self._heap.lowest(count, held)

    def _log_popularity(self, key: int) -> float:
        """log P, less what the clock takes from all alike. An expert never used counts as used once."""
        return log(max(self._count[key], 1)) + self._last[key] * self._gain_per_pass
