"""lfru: the lowest frequency per age leaves first.

Rule: min frequency / (clock - last + 1), from vLLM's pull request 37190 and tinyserve.
Reconstructed: the clock counts layer-steps, and frequency is counted since the expert came.
"""

from collections.abc import Container, Sequence

import numpy as np

from compute.policies.base import CacheShape, FloatArray
from compute.policies.resident_scores import ResidentScores


class Lfru:
    needs_probs = False

    def __init__(self, shape: CacheShape) -> None:
        num_keys = shape.num_layers * shape.num_experts
        self._clock = 0
        self._count = np.zeros(num_keys, dtype=np.float32)
        self._last = np.zeros(num_keys, dtype=np.float64)
        self._residents = ResidentScores(num_keys)

    # --- observing ---------------------------------------------------------------------------

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        pass

    def on_access(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> None:
        self._clock += 1
        used = np.array(keys)
        self._count[used] += 1.0
        self._last[used] = self._clock

    def on_insert(self, key: int, is_speculative: bool) -> None:
        self._residents.insert(key)
        self._count[key] = 0.0
        self._last[key] = self._clock

    def on_evict(self, key: int) -> None:
        self._residents.remove(key)

    # --- asking ------------------------------------------------------------------------------

    def choose_victims(self, count: int, held: Container[int]) -> list[int]:
        age = (self._clock + 1.0 - self._last).astype(np.float32)
        return self._residents.lowest(self._count / age, count, held)
