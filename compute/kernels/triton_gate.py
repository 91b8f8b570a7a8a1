"""Gate: what an experts module makes of its first projection, as a formula that a kernel can fuse.

A formula is taken only if it does what the module's own `_apply_gate` (or `act_fn`) does with a
probe; a module that no formula fits is told so, and its own method is called. Knows torch alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from compute.kernels.triton_plan import Pairing

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]

_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
}
#: Magnitudes of the probe: any clamp between them is seen.
_MAGNITUDES = (1e-2, 0.3, 1.0, 3.0, 10.0, 100.0, 1e4)
_PROBE_ROWS = 8


class _Experts(Protocol):
    """What transformers' experts interface gives a module."""

    has_gate: bool

    def _apply_gate(self, gate_up_out: Tensor) -> Tensor: ...
    def act_fn(self, hidden: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Gate:
    """activation(min(gate, limit)) * (clamp(up, -limit, limit) + shift); without a pairing activation(x).

    "silu" is x * sigmoid(alpha * x); a `limit` of 0 is none.
    """

    pairing: Pairing
    activation: Activation
    alpha: float = 1.0
    limit: float = 0.0
    shift: float = 0.0

    def __call__(self, proj: Tensor) -> Tensor:
        """[n, I] from a projection [n, 2 I] (without a pairing [n, I]), as a kernel computes it."""
        if self.pairing == "none":
            return self._activate(proj)
        is_halves = self.pairing == "halves"
        gate, up = proj.chunk(2, dim=-1) if is_halves else (proj[..., ::2], proj[..., 1::2])
        if self.limit:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return self._activate(gate) * (up + self.shift)

    def _activate(self, x: Tensor) -> Tensor:
        if self.activation == "silu" and self.alpha != 1.0:
            return x * torch.sigmoid(self.alpha * x)
        return _ACTIVATIONS[self.activation](x)


def recognise(module: nn.Module, width: int, device: torch.device) -> Gate | None:
    """The formula of a module whose first projection is `width` wide; None when there is none.

    float32 on `device`. What the module itself raises for its own kind of input is not caught.
    """
    experts = cast(_Experts, module)
    probe = _probe(width).to(device)
    with torch.no_grad():
        expected = experts._apply_gate(probe) if experts.has_gate else experts.act_fn(probe)
        for gate in _candidates(module, width):
            found = gate(probe)
            if found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-5, atol=1e-6):
                return gate
    return None


def _candidates(module: nn.Module, width: int) -> Iterator[Gate]:
    if not cast(_Experts, module).has_gate:
        yield from (Gate("none", activation) for activation in _ACTIVATIONS)
        return
    if width % 2:
        return
    limit = _number(module, "limit", "swiglu_limit")
    alpha = _number(module, "alpha", "swiglu_alpha")
    pairings: tuple[Pairing, Pairing] = ("halves", "interleaved")
    for pairing in pairings:
        for activation in _ACTIVATIONS:
            yield Gate(pairing, activation)
            if limit:
                yield Gate(pairing, activation, limit=limit)
        if limit and alpha:
            yield Gate(pairing, "silu", alpha, limit, 1.0)


def _number(module: nn.Module, *names: str) -> float:
    """The first attribute of these names that is a number; 0 when there is none."""
    found = (getattr(module, name, None) for name in names)
    return next((float(value) for value in found if isinstance(value, int | float)), 0.0)


def _probe(width: int) -> Tensor:
    """[rows, width]: values of every magnitude in every column."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(_PROBE_ROWS * len(_MAGNITUDES), width, generator=generator)
    return values * torch.tensor(_MAGNITUDES).repeat_interleave(_PROBE_ROWS).unsqueeze(1)
