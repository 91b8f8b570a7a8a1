"""What a predictor is: it looks at one layer-step and names experts of later ones. Nothing else.

It knows experts by their number within a layer, and neither slots nor bytes: what is asked for,
and when, is the prefetch planner's to say. One instance serves one model. The live runtime and
the replay drive the very same objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class RoutingShape:
    """What a predictor may know of the model whose routing it foresees."""

    num_layers: int
    num_experts: int
    top_k: int

    def layers_after(self, layer: int, lookahead: int) -> range:
        """The up to `lookahead` layers that follow `layer` in the same pass."""
        return range(layer + 1, min(layer + lookahead + 1, self.num_layers))


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

    def observe(self, layer: int, chosen: Sequence[int]) -> None:
        """`layer` of the running pass uses the experts `chosen`, distinct and ascending.

        Told of every layer-step, before `predict`, which is asked only where a guess has room.
        """

    def predict(self, layer: int, residual: Tensor | None, chosen: Sequence[int]) -> list[Prediction]:
        """For the layers after `layer`, nearest first; never beyond the last one.

        `residual` [..., H] is what enters the layer's feeding norm; None: the predictor knows it
        by itself, or needs none. `chosen`: the layer's own experts, as told to `observe`.
        """

    def close(self) -> None:
        """Let go of the model. Idempotent."""


def check_lookahead(name: str, lookahead: int) -> int:
    """`lookahead`, at least 1. Raises ValueError."""
    if lookahead < 1:
        raise ValueError(f"{name}'s lookahead is {lookahead}; allowed is 1 or more, 0 means no predictor")
    return lookahead
