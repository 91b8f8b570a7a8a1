"""What a predictor is: it looks at one layer-step and names experts of later ones. Nothing else.

It knows experts by their number within a layer, and neither slots nor bytes: what is asked for,
and when, is the prefetch planner's to say. One instance serves one model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Prediction:
    """The experts that `layer` will want in the pass that is running, most wanted first."""

    layer: int
    experts: list[int]


class Predictor(Protocol):
    #: "gate", ...: as in settings and reports
    name: str
    #: how many MoE layers ahead it looks, at least 1
    lookahead: int
    #: sentences on what it cannot predict, and why; may grow
    notices: list[str]

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        """A forward pass over `num_tokens` tokens begins."""

    def predict(self, layer: int, residual: Tensor | None, chosen: Sequence[int]) -> list[Prediction]:
        """For the layers after `layer`, nearest first; never beyond the last one.

        `residual` [..., H] is what enters the layer's feeding norm; None: the predictor knows it
        by itself, or needs none. `chosen`: the layer's own experts, distinct and ascending.
        """

    def close(self) -> None:
        """Let go of the model. Idempotent."""
