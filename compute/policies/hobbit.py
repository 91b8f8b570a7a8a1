"""hobbit: the lowest weighted sum of recency, frequency, precise uses and nearness leaves first.

Rule: HOBBIT (arXiv 2411.01433), min of w1 * last / now + w2 * uses / now + w3 * precise uses / now
+ w4 * (1 - d / L), d layer-steps until the layer's next visit; counts start anew with a sequence.
Reconstructed: the weights' values, which the paper fits to each model; time counts passes; every
use is a precise one, as an expert has one precision here; d is taken to the future.
"""

from collections.abc import Container, Sequence

import numpy as np

from compute.policies.base import CacheShape, FloatArray
from compute.policies.resident_scores import ResidentScores


class Hobbit:
    needs_probs = False

    def __init__(
        self,
        shape: CacheShape,
        recency: float = 0.35,
        frequency: float = 0.35,
        precise: float = 0.15,
        nearness: float = 0.15,
        reset: bool = True,
    ) -> None:
        self._recency, self._nearness, self._reset = recency, nearness, reset
        self._frequency = frequency + precise
        self._num_layers = shape.num_layers
        self._pass = 0
        self._layer = 0
        self._count = np.zeros((shape.num_layers, shape.num_experts), dtype=np.float32)
        self._last = np.zeros_like(self._count)
        self._residents = ResidentScores(self._count.size)

    # --- observing ---------------------------------------------------------------------------

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        if is_new_sequence and self._reset:
            self._last -= self._pass
            self._count[:] = 0.0
            self._pass = 0
        self._pass += 1

    def on_step(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> None:
        self._layer = layer

    def on_access(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> None:
        used = np.array(keys)
        self._count.reshape(-1)[used] += 1.0
        self._last.reshape(-1)[used] = self._pass

    def on_insert(self, key: int, is_speculative: bool) -> None:
        self._residents.insert(key)

    def on_evict(self, key: int) -> None:
        self._residents.remove(key)

    # --- asking ------------------------------------------------------------------------------

    def choose_victims(self, count: int, held: Container[int]) -> list[int]:
        now = max(self._pass, 1)
        scores = (self._recency / now) * self._last + (self._frequency / now) * self._count
        ahead = (np.arange(self._num_layers) - self._layer - 1) % self._num_layers
        scores += (self._nearness * (1.0 - ahead / self._num_layers)).astype(np.float32)[:, None]
        return self._residents.lowest(scores.reshape(-1), count, held)
