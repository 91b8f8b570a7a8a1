"""RecordedGate: the gate's predictions out of a trace that holds them, for a replay.

Names what the live gate named, in its order. Knows passes by counting them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compute.arrays import IntArray
from compute.predictors.base import Prediction, RoutingShape, check_lookahead
from compute.predictors.ranking import Ranks, Width, most_wanted

if TYPE_CHECKING:
    from torch import Tensor

    from compute.layer_steps import LayerSteps


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """`predicted` [tokens, layers, lookahead, n] of a trace; pass p is tokens start[p]:start[p + 1]."""

    predicted: Ranks
    start: IntArray

    @classmethod
    def of(cls, steps: LayerSteps) -> Recorded | None:
        """None where the trace does not hold the gate's predictions."""
        predicted = steps.trace.predicted
        return None if predicted is None else cls(predicted, steps.token_of_pass)


class RecordedGate:
    """Raises ValueError where the trace does not reach as far, or holds fewer experts than are asked for."""

    name = "gate"

    def __init__(
        self,
        recorded: Recorded,
        shape: RoutingShape,
        lookahead: int,
        extra: int = 0,
        percentile: float | None = None,
    ) -> None:
        self.lookahead = check_lookahead("the gate", lookahead)
        self.notices: list[str] = []
        self._shape = shape
        self._recorded = recorded
        self._num_named = Width(extra, percentile).of(shape.top_k, shape.num_experts)
        self._pass = -1
        ahead, most = recorded.predicted.shape[2:]
        if lookahead > ahead:
            raise ValueError(
                f"the trace holds the gate's predictions {ahead} layers ahead, not {lookahead}: "
                f"ask for a lookahead of at most {ahead}, or record it again"
            )
        if self._num_named > most:
            raise ValueError(
                f"the trace holds the gate's {most} first experts, not {self._num_named}: "
                "ask for fewer, or record it again with more"
            )

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        self._pass += 1

    def observe(self, layer: int, chosen: Sequence[int]) -> None:
        pass

    def predict(self, layer: int, residual: Tensor | None, chosen: Sequence[int]) -> list[Prediction]:
        tokens = slice(*self._recorded.start[self._pass : self._pass + 2])
        predictions = []
        for target in self._shape.layers_after(layer, self.lookahead):
            ranks = self._recorded.predicted[tokens, target, target - layer - 1, : self._num_named]
            if experts := most_wanted(ranks):
                predictions.append(Prediction(target, experts))
        return predictions

    def close(self) -> None:
        pass
