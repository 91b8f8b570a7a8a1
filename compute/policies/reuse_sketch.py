"""reuse-sketch: the expert whose next use is expected farthest away leaves first. Learns as it goes.

Rule: layer-steps to the layer's next visit, plus L * (1 - p1) / p2 ** power; p1 the chance that the
expert is used at that visit, p2 at each visit after it. The third sketch of our design,
from which reuse-distance grew; `HabitModel` estimates the chances.
"""

from collections.abc import Container, Sequence

import numpy as np

from compute.policies.base import CacheShape, FloatArray
from compute.policies.habit_model import HabitModel
from compute.policies.resident_scores import ResidentScores


class ReuseSketch:
    needs_probs = False

    def __init__(self, shape: CacheShape, rate: float = 0.05, power: float = 0.8) -> None:
        self._num_layers = shape.num_layers
        self._power = np.float32(power)
        self._clock = 0
        self._model = HabitModel(shape, rate)
        #: Minus the layer-step in which each expert is expected [L, E], counted from the start.
        self._minus_due = np.zeros((shape.num_layers, shape.num_experts), dtype=np.float32)
        self._rows = list(self._minus_due)
        self._residents = ResidentScores(self._minus_due.size)

    # --- observing ---------------------------------------------------------------------------

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        pass

    def on_access(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> None:
        first, second = self._model.observe(layer, keys)
        beyond = (first - 1.0) / second**self._power
        beyond *= self._num_layers
        np.subtract(beyond, self._clock + self._num_layers, out=self._rows[layer])
        self._clock += 1

    def on_insert(self, key: int, is_speculative: bool) -> None:
        self._residents.insert(key)

    def on_evict(self, key: int) -> None:
        self._residents.remove(key)

    # --- asking ------------------------------------------------------------------------------

    def choose_victims(self, count: int, held: Container[int]) -> list[int]:
        return self._residents.lowest(self._minus_due.reshape(-1), count, held)
