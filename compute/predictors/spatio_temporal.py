"""Spatio-temporal prediction: which experts follow which across layers, and which a layer used of late.

After ST-MoE, arXiv 2606.15453: a cross-layer correlation table and a table of the last tokens'
history. The paper does not spell out how both become one score, nor how old counts fade: the rule
below is our reconstruction. Looks at no model; learns as the stream goes by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from compute.predictors.base import Prediction, RoutingShape, check_lookahead

if TYPE_CHECKING:
    from torch import Tensor

Table = npt.NDArray[np.float32]


class SpatioTemporal:
    """score[j] = blend * mean over i in S_l of CCT[i, j] / rowsum(i) + (1 - blend) * THT[j] / k.

    CCT[d, l] counts j in S_{l+d} after i in S_l; row i fades by `decay` whenever i is used. THT[l]
    is a moving average over tokens that keeps `history` of its value each time, and starts anew
    with a sequence. Names the k + `extra` best that score at all.
    """

    name = "st-moe"

    def __init__(
        self,
        shape: RoutingShape,
        lookahead: int,
        blend: float = 0.85,
        decay: float = 0.995,
        history: float = 0.9,
        extra: int = 0,
    ) -> None:
        for option, value in (("blend", blend), ("decay", decay), ("history", history)):
            if not 0 <= value <= 1:
                raise ValueError(f"{option} is {value:g}; it must be from 0 to 1")
        if extra < 0:
            raise ValueError(f"extra is {extra}; it is a number of experts, 0 or more")
        self.lookahead = check_lookahead(self.name, lookahead)
        self.notices: list[str] = []
        self._shape = shape
        self._blend = blend
        self._decay = np.float32(decay)
        self._history_kept = np.float32(history)
        self._num_named = min(shape.top_k + extra, shape.num_experts)
        size = (shape.num_layers, shape.num_experts)
        #: [lookahead, num_layers, num_experts, num_experts], and the sums of its rows
        self._follows: Table = np.zeros((lookahead, *size, shape.num_experts), dtype=np.float32)
        self._row_sum: Table = np.zeros((lookahead, *size), dtype=np.float32)
        self._history: Table = np.zeros(size, dtype=np.float32)
        #: what the layers of the running pass chose
        self._chosen: dict[int, npt.NDArray[np.int64]] = {}

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        self._chosen.clear()
        if is_new_sequence:
            self._history.fill(0)

    def observe(self, layer: int, chosen: Sequence[int]) -> None:
        experts = np.asarray(chosen, dtype=np.int64)
        self._history[layer] *= self._history_kept
        self._history[layer, experts] += 1 - self._history_kept
        for ahead in range(1, min(self.lookahead, layer) + 1):
            before = self._chosen.get(layer - ahead)
            if before is not None:
                self._count(ahead - 1, layer - ahead, before, experts)
        self._chosen[layer] = experts

    def predict(self, layer: int, residual: Tensor | None, chosen: Sequence[int]) -> list[Prediction]:
        experts = self._chosen[layer]
        predictions = []
        for target in self._shape.layers_after(layer, self.lookahead):
            if best := self._best(self._score(target - layer - 1, layer, experts, target)):
                predictions.append(Prediction(target, best))
        return predictions

    def close(self) -> None:
        pass

    def _count(
        self, ahead: int, layer: int, before: npt.NDArray[np.int64], now: npt.NDArray[np.int64]
    ) -> None:
        """`now` followed `before`, the choice of `layer`."""
        rows = self._follows[ahead, layer, before] * self._decay
        rows[:, now] += 1
        self._follows[ahead, layer, before] = rows
        self._row_sum[ahead, layer, before] = rows.sum(1)

    def _score(self, ahead: int, layer: int, experts: npt.NDArray[np.int64], target: int) -> Table:
        rows = self._follows[ahead, layer, experts]
        sums = np.maximum(self._row_sum[ahead, layer, experts], np.finfo(np.float32).tiny)
        across: Table = (rows / sums[:, None]).mean(0)
        score: Table = self._blend * across + (1 - self._blend) / self._shape.top_k * self._history[target]
        return score

    def _best(self, score: Table) -> list[int]:
        order = np.argsort(-score, kind="stable")[: self._num_named]
        best: list[int] = order[score[order] > 0].tolist()
        return best
