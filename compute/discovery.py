"""Discovery: which modules of a model are MoE layers, and what the speculative gate may use of them.

One probe forward, with experts that answer zeros, finds the forward order, each layer's router
and the norm that feeds it. Leaves no hook and no stage behind. Knows no loader and no weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from compute import experts
from protocol.errors import ModelError

_ROUTER_NAMES = ("gate", "router")
_NUM_PROBE_TOKENS = 4


@dataclass(frozen=True, slots=True)
class MoeLayer:
    """One MoE layer, numbered in forward order; `name` is the path of its experts module.

    `gate_reason` says why the speculative gate cannot peer into this layer, "" when it can; then
    `router` and `norm` are there, and `router(norm(residual))` ends in the layer's top-k index.
    """

    index: int
    name: str
    experts: nn.Module
    router: nn.Module | None
    norm: nn.Module | None
    gate_reason: str


@dataclass(slots=True)
class _RouterCall:
    """What a router was given and what it answered."""

    is_plain: bool
    hidden: torch.Tensor | None
    output: object
    norm: nn.Module | None


@dataclass(slots=True)
class _Probe:
    """Stands in for the stage during the probe and takes notes."""

    order: list[nn.Module] = field(default_factory=list)
    index_of: dict[nn.Module, torch.Tensor] = field(default_factory=dict)
    calls: dict[nn.Module, _RouterCall] = field(default_factory=dict)
    norm_outputs: list[tuple[nn.Module, torch.Tensor]] = field(default_factory=list)

    def run_layer(
        self, module: nn.Module, layer: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Zeros [T, H]; notes whose turn it was and which experts were chosen."""
        self.order.append(module)
        self.index_of[module] = index
        return torch.zeros_like(hidden)

    def saw_norm(self, norm: nn.Module, args: tuple[object, ...], output: object) -> None:
        if isinstance(output, torch.Tensor) and len(args) == 1:
            self.norm_outputs.append((norm, output))

    def saw_router(
        self, router: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object
    ) -> None:
        hidden = args[0] if args and isinstance(args[0], torch.Tensor) else None
        norm = self._norm_feeding(hidden) if hidden is not None else None
        self.calls[router] = _RouterCall(len(args) == 1 and not kwargs, hidden, output, norm)

    def _norm_feeding(self, hidden: torch.Tensor) -> nn.Module | None:
        """The latest norm whose output is what the router got: the same memory, else the same values."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        candidates = [
            (norm, output.reshape(-1, output.shape[-1]))
            for norm, output in reversed(self.norm_outputs)
            if output.shape[-1] == hidden.shape[-1] and output.numel() == hidden.numel()
        ]
        for norm, output in candidates:
            if output.data_ptr() == rows.data_ptr():
                return norm
        for norm, output in candidates:
            if output.dtype == rows.dtype and torch.equal(output, rows):
                return norm
        return None


def discover(model: PreTrainedModel) -> list[MoeLayer]:
    """The MoE layers of a skeleton, in forward order.

    Raises ModelError when there are none, or when the probe does not reach one of them.
    """
    modules = {name: m for name, m in model.named_modules() if experts.is_experts_module(m)}
    if not modules:
        raise ModelError(
            f"{type(model).__name__} has no experts that transformers' experts interface dispatches: "
            f"only Mixture-of-Experts models on that interface can be served"
        )
    routers = {name: _router_of(model, name) for name in modules}
    probe = _run_probe(model, list(modules.values()), [r for r in routers.values() if r is not None])
    unreached = [name for name, module in modules.items() if module not in probe.index_of]
    if unreached:
        raise ModelError(
            f"{type(model).__name__} does not reach its experts {unreached[0]} when it is given text alone "
            f"({len(unreached)} of {len(modules)} layers): such a model cannot be served"
        )
    name_of = {module: name for name, module in modules.items()}
    return [
        _describe(index, name_of[module], module, routers[name_of[module]], probe)
        for index, module in enumerate(dict.fromkeys(probe.order))
    ]


def _router_of(model: nn.Module, experts_name: str) -> nn.Module | None:
    block = model.get_submodule(experts_name.rpartition(".")[0])
    children = dict(block.named_children())
    return next((children[name] for name in _ROUTER_NAMES if name in children), None)


def _run_probe(model: PreTrainedModel, modules: list[nn.Module], routers: list[nn.Module]) -> _Probe:
    probe = _Probe()
    embedding = model.get_input_embeddings()
    input_ids = torch.arange(1, _NUM_PROBE_TOKENS + 1, device=embedding.weight.device)
    input_ids = (input_ids % embedding.num_embeddings).unsqueeze(0)
    with _watching(model, modules, routers, probe), torch.no_grad():
        model(input_ids=input_ids, use_cache=False)
    return probe


@contextmanager
def _watching(
    model: nn.Module, modules: list[nn.Module], routers: list[nn.Module], probe: _Probe
) -> Iterator[None]:
    """Put `probe` on every experts module and its hooks on norms and routers; take all off again."""
    norms = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    hooks = [norm.register_forward_hook(probe.saw_norm) for norm in norms]
    hooks += [router.register_forward_hook(probe.saw_router, with_kwargs=True) for router in routers]
    for module in modules:
        experts.bind(module, probe, layer=-1)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in modules:
            experts.unbind(module)


def _describe(index: int, name: str, module: nn.Module, router: nn.Module | None, probe: _Probe) -> MoeLayer:
    call = probe.calls.get(router) if router is not None else None
    reason = _gate_reason(call, probe.index_of[module])
    return MoeLayer(index, name, module, router, call.norm if call else None, reason)


def _gate_reason(call: _RouterCall | None, index: torch.Tensor) -> str:
    if call is None:
        return "it has no router of its own that is called gate or router"
    if not call.is_plain or call.hidden is None:
        return "its router needs more than hidden states"
    output = call.output
    if not (isinstance(output, tuple) and len(output) >= 3 and isinstance(output[2], torch.Tensor)):
        return "its router does not answer (logits, weights, index)"
    if output[2].shape != index.shape or not torch.equal(output[2], index):
        return "its experts are not the ones its router answers"
    if call.norm is None:
        return "no norm feeds its router"
    return ""
