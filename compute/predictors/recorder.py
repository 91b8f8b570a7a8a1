"""PredictionRecorder: an observer of a stage that keeps what the gate foresees, token by token.

With it in the trace a replay can ask the gate. Has a gate of its own, and prefetches nothing; one
sequence at a time, so a row is a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from compute.predictors.base import RoutingShape
from compute.predictors.gate import GateLookahead
from compute.predictors.ranking import Ranks

if TYPE_CHECKING:
    from torch import Tensor

    from compute.discovery import MoeLayer


class PredictionRecorder:
    """`observe` goes into `Stage.observers`. Keeps the k + `extra` experts that the gate puts first."""

    def __init__(
        self, moe_layers: Sequence[MoeLayer], shape: RoutingShape, lookahead: int, extra: int = 0
    ) -> None:
        if lookahead >= shape.num_layers:
            raise ValueError(
                f"the gate cannot look {lookahead} layers ahead in a model of {shape.num_layers}: "
                f"allowed is 1 to {shape.num_layers - 1}"
            )
        self._gate = GateLookahead(moe_layers, lookahead, extra)
        self._num_named = min(shape.top_k + extra, shape.num_experts)
        self._num_tokens = 0
        #: [target layer][distance - 1]: one array [tokens, n] a pass
        self._ranks: list[list[list[Ranks]]] = [
            [[] for _ in range(lookahead)] for _ in range(shape.num_layers)
        ]

    @property
    def notices(self) -> list[str]:
        """Sentences on the layers whose gate cannot be asked; theirs is -1."""
        return self._gate.notices

    def observe(self, layer: int, index: Tensor, weights: Tensor, probs: Tensor | None) -> None:
        """One layer-step of index [T, K]."""
        if layer == 0:
            self._num_tokens += len(index)
        for target, ranks in self._gate.peer(layer):
            assert len(ranks) == len(index), (len(ranks), len(index))
            self._ranks[target][target - layer - 1].append(ranks)

    def predicted(self) -> Ranks:
        """[tokens, layers, lookahead, n] of all passes so far, as `Trace.predicted`."""
        size = (self._num_tokens, len(self._ranks), self._gate.lookahead, self._num_named)
        predicted: Ranks = np.full(size, -1, dtype=np.int16)
        for target, by_distance in enumerate(self._ranks):
            for place, passes in enumerate(by_distance):
                if passes:
                    predicted[:, target, place] = np.concatenate(passes)
        return predicted

    def close(self) -> None:
        """Let go of the model. Idempotent."""
        self._gate.close()
