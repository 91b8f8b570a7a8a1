"""score-ewma: the lowest moving average of the router's probability leaves first.

Rule: HybriMoE's MRS (arXiv 2504.05897): S = alpha * top(s) + (1 - alpha) * S, where top keeps the
`width` * top-k largest of the router's probabilities and zeroes the rest.
Reconstructed: alpha; where only the chosen ones' probabilities are known, top keeps those; where
none is known, each chosen expert counts as 1.
"""

from collections.abc import Container, Sequence

import numpy as np

from compute.policies.base import CacheShape, FloatArray
from compute.policies.resident_scores import ResidentScores


class ScoreEwma:
    needs_probs = True

    def __init__(self, shape: CacheShape, alpha: float = 0.1, width: float = 2.0) -> None:
        if not (0.0 < alpha <= 1.0 and width >= 1.0):
            raise ValueError(f"alpha {alpha} must lie above 0 and up to 1, and width {width} at 1 or above")
        self._alpha = alpha
        self._num_kept = min(round(width * shape.top_k), shape.num_experts)
        self._scores = np.zeros((shape.num_layers, shape.num_experts), dtype=np.float32)
        self._residents = ResidentScores(self._scores.size)

    # --- observing ---------------------------------------------------------------------------

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        pass

    def on_access(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> None:
        row = self._scores[layer]
        row *= 1.0 - self._alpha
        if probs is None:
            row[np.array(keys) - layer * len(row)] += self._alpha
            return
        known = np.nan_to_num(probs, nan=0.0)
        kept = known.argpartition(-self._num_kept)[-self._num_kept :]
        row[kept] += self._alpha * known[kept]

    def on_insert(self, key: int, is_speculative: bool) -> None:
        self._residents.insert(key)

    def on_evict(self, key: int) -> None:
        self._residents.remove(key)

    # --- asking ------------------------------------------------------------------------------

    def choose_victims(self, count: int, held: Container[int]) -> list[int]:
        return self._residents.lowest(self._scores.reshape(-1), count, held)
