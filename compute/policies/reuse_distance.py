"""reuse-distance: the expert whose next use is worth least to wait for leaves first. Learns as it goes.

Rule: the smallest gamma ** (visits until the next use), expected: `KeepValue` learns it for each
expert as its layer is visited, and it is discounted for the layer-steps until that layer comes
again. An expert that is worth less than all who could leave for it is served without being kept.
Ours; `docs/policies.md` tells what was tried on the way.
"""

from collections.abc import Container, Sequence

import numpy as np

from compute.policies.base import CacheShape, FloatArray
from compute.policies.compiled_keep_value import keep_value
from compute.policies.keep_value import horizon, per_step
from compute.policies.resident_scores import ResidentScores

#: Passes after which the scores are counted from a new origin: 32-bit floats stay exact enough.
_PASSES_PER_ORIGIN = 256
#: What an expert of a layer that was never visited is worth.
_UNSEEN = 0.1


class ReuseDistance:
    needs_probs = False

    def __init__(self, shape: CacheShape, gamma: float = 0.0) -> None:
        """`gamma`: discount per visit of a layer; 0 for one that suits the cache's size."""
        num_keys = shape.num_layers * shape.num_experts
        gamma = gamma or horizon(shape.num_slots / num_keys)
        if not 0.0 < gamma < 1.0:
            raise ValueError(f"gamma is {gamma}; it must lie between 0 and 1")
        self._num_layers = shape.num_layers
        self._per_step = per_step(gamma, shape.num_layers)
        self._value = keep_value(shape, gamma)
        self._pass = 0
        #: log of the value, discounted to its layer's next visit as seen from the origin [L, E]
        due = np.log(_UNSEEN) + self._per_step * np.arange(shape.num_layers, dtype=np.float32)
        self._scores = np.repeat(due[:, None], shape.num_experts, axis=1).astype(np.float32)
        self._rows = list(self._scores)
        self._flat = self._scores.reshape(-1)
        self._residents = ResidentScores(num_keys)

    # --- observing ---------------------------------------------------------------------------

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        if is_new_sequence:
            self._value.begin_sequence()
        self._pass += 1
        if self._pass == _PASSES_PER_ORIGIN:
            self._scores -= np.float32(self._per_step * self._num_layers * self._pass)
            self._pass = 0

    def on_step(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> None:
        """Learns before anybody leaves: who was not chosen now is not due before the next pass."""
        self._learn(layer, keys, None)

    def on_access(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> None:
        pass

    def on_insert(self, key: int, is_speculative: bool) -> None:
        self._residents.insert(key)

    def on_evict(self, key: int) -> None:
        self._residents.remove(key)

    def _learn(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> None:
        row = self._rows[layer]
        np.log(self._value.observe(layer, keys, probs), out=row)
        row += np.float32(self._per_step * ((self._pass + 1) * self._num_layers + layer))

    # --- asking ------------------------------------------------------------------------------

    def choose_admitted(self, missing: Sequence[int], num_free: int, held: Container[int]) -> list[int]:
        scores = self._flat
        best = sorted(missing, key=scores.__getitem__, reverse=True)
        admitted = best[:num_free]
        leavers = self.choose_victims(len(best) - num_free, held)
        for newcomer, leaver in zip(best[num_free:], leavers, strict=False):
            if scores[newcomer] < scores[leaver]:
                break
            admitted.append(newcomer)
        return admitted

    def choose_victims(self, count: int, held: Container[int]) -> list[int]:
        return self._residents.lowest(self._flat, count, held)
