"""Previous token: a layer wants what it wanted for the last tokens. Looks at no model.

High in overall recall and low in recall of misses, as what was just used is mostly still there.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from compute.predictors.base import Prediction, RoutingShape, check_lookahead

if TYPE_CHECKING:
    from torch import Tensor


class PreviousToken:
    """The experts of the last `tokens` passes of the same sequence: by how many used them, then the latest.

    A pass over several tokens counts as one.
    """

    name = "previous-token"

    def __init__(self, shape: RoutingShape, lookahead: int, tokens: int = 1) -> None:
        if tokens < 1:
            raise ValueError(f"tokens is {tokens}; at least 1 is needed")
        self.lookahead = check_lookahead(self.name, lookahead)
        self.notices: list[str] = []
        self._shape = shape
        #: by layer, the latest pass first
        self._past = [deque[Sequence[int]](maxlen=tokens) for _ in range(shape.num_layers)]

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        if is_new_sequence:
            for past in self._past:
                past.clear()

    def observe(self, layer: int, chosen: Sequence[int]) -> None:
        self._past[layer].appendleft(chosen)

    def predict(self, layer: int, residual: Tensor | None, chosen: Sequence[int]) -> list[Prediction]:
        return [
            Prediction(target, self._recent(target))
            for target in self._shape.layers_after(layer, self.lookahead)
            if self._past[target]
        ]

    def close(self) -> None:
        pass

    def _recent(self, layer: int) -> list[int]:
        uses = Counter(expert for chosen in self._past[layer] for expert in chosen)
        return [expert for expert, _ in uses.most_common()]
