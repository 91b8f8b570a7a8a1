"""Which experts modules C can run from end to end: what they make of their inputs, read from the module.

Anything but up, a known activation (with the default gate, where there is one) and down is left
to the module itself.
"""

from collections.abc import Callable
from typing import Protocol, cast

from torch import Tensor, nn

_ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2")
_ACTIVATION_CLASSES = {
    "torch.nn.modules.activation": {"SiLU": "silu", "ReLU": "relu"},
    "transformers.activations": {
        "SiLUActivation": "silu",
        "GELUTanh": "gelu_tanh",
        "NewGELUActivation": "gelu_tanh",
        "ReLUSquaredActivation": "relu2",
        "GELUActivation": "gelu",
    },
}


class Experts(Protocol):
    """What transformers' experts interface gives a module."""

    has_gate: bool

    def _apply_gate(self, gate_up_out: Tensor) -> Tensor: ...
    def act_fn(self, hidden: Tensor) -> Tensor: ...
    def post_expert_norm(self, hidden: Tensor) -> Tensor: ...


def fused_activation(module: nn.Module) -> int | None:
    """cpu.c's number of the activation, if it can run the module; None otherwise."""
    experts = cast(Experts, module)
    if has_post_norm(module) or (experts.has_gate and not _has_default_gate(module)):
        return None
    kind: type = type(experts.act_fn)
    name = _ACTIVATION_CLASSES.get(kind.__module__, {}).get(kind.__name__)
    return None if name is None else _ACTIVATIONS.index(name)


def has_post_norm(module: nn.Module) -> bool:
    """Whether each expert's output goes through a norm; unknown to transformers before 5.18."""
    return bool(getattr(module, "has_post_expert_norm", False))


def _has_default_gate(module: nn.Module) -> bool:
    """Whether gate and up are halves, and the activated gate times up is all that is made of them."""
    gate: Callable[..., Tensor] | None = getattr(module, "_apply_gate", None)
    return getattr(gate, "__module__", "") == "transformers.integrations.moe"
