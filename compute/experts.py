"""The experts function that transformers calls instead of its own, registered as "sidestage".

Owns the way from an experts module to its stage: `bind` hangs a stage and a layer number on the
module, the function finds them there. Knows no slots, no loader and no kernels: the stage does.
"""

from typing import Protocol

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

IMPLEMENTATION = "sidestage"

#: What transformers' decorator has put on an experts module since 5.17.
_FLAGS = ("has_gate", "has_bias", "is_transposed", "is_concatenated")


class LayerRunner(Protocol):
    """What the experts function needs of a stage."""

    def run_layer(
        self, module: nn.Module, layer: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """hidden [T, H], index int64 [T, K], weights [T, K] -> [T, H]: the layer's experts, combined."""


def is_experts_module(module: nn.Module) -> bool:
    """Whether `module` dispatches its forward through transformers' experts interface."""
    return all(hasattr(module, flag) for flag in _FLAGS)


def register() -> None:
    """Make "sidestage" known to transformers. Idempotent; needed before a model is built with it."""
    if IMPLEMENTATION not in ALL_EXPERTS_FUNCTIONS:
        ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, experts_forward)


def bind(module: nn.Module, runner: LayerRunner, layer: int) -> None:
    """From now on `module` is MoE layer `layer` of `runner`."""
    module.__dict__["_sidestage"] = runner
    module.__dict__["_sidestage_layer"] = layer


def unbind(module: nn.Module) -> None:
    """Take the stage off `module`; without one its forward raises."""
    module.__dict__.pop("_sidestage", None)
    module.__dict__.pop("_sidestage_layer", None)


def experts_forward(
    module: nn.Module, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """hidden [T, H], index int64 [T, K], weights [T, K] -> [T, H], by the module's stage.

    Raises RuntimeError when there is no stage, or when a gradient is asked for.
    """
    runner: LayerRunner | None = module.__dict__.get("_sidestage")
    if runner is None:
        raise RuntimeError(
            "this model's experts are not on any stage: it was closed, or built without `compute.offload`; "
            "call `offload` again"
        )
    if torch.is_grad_enabled() and (hidden.requires_grad or weights.requires_grad):
        raise RuntimeError(
            "an offloaded model is for inference and has no gradients: call it under torch.no_grad()"
        )
    layer: int = module.__dict__["_sidestage_layer"]
    return runner.run_layer(module, layer, hidden, index, weights)
