"""reuse-distance-probs: reuse-distance that also hears what the router said of experts it did not choose.

Where a trace kept the chosen ones' probabilities alone, it decides on choices alone.
"""

from collections.abc import Sequence

from compute.policies.base import FloatArray
from compute.policies.reuse_distance import ReuseDistance


class ReuseDistanceProbs(ReuseDistance):
    needs_probs = True
    needs_whole_probs = True

    def on_step(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> None:
        is_whole = probs is not None and probs.min() >= 0.0  # not so where one is NaN
        self._learn(layer, keys, probs if is_whole else None)
