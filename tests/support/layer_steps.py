"""Layer-steps for kernels: random experts in a pool of slots, routed tokens, and what torch makes of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.integrations.moe import use_experts_implementation

from compute.kernels.base import GroupKernel
from compute.kernels.reference import ReferenceKernel
from loader.anatomy import Anatomy, ExpertParameter
from loader.quantize import plan_layout, write_blob
from protocol.blob import BlobLayout

GARBAGE = 0xA5


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def blob_of(
    tensors: dict[str, Tensor], bits: str, group: int = 64, is_transposed: bool = False, fast: bool = True
) -> tuple[BlobLayout, Tensor]:
    """One expert's tensors, matrices before biases; plainly rounded if `fast`."""
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].ndim))
    parameters = tuple(ExpertParameter(name, tuple(tensor.shape)) for name, tensor in tensors.items())
    anatomy = Anatomy(Any, "", "", "", ("experts",), parameters, 1, 1, is_transposed)  # type: ignore[arg-type]
    layout = plan_layout(anatomy, {name: tensor.dtype for name, tensor in tensors.items()}, bits, group)
    blob = np.full(layout.stride, 255, np.uint8)
    write_blob(blob, tensors, layout, is_transposed=is_transposed, fast=fast)
    return layout, torch.from_numpy(blob)


def experts_module(
    gate: Callable[[Tensor], Tensor] | None = None, activation: nn.Module | None = None, **flags: Any
) -> nn.Module:
    """An experts module as transformers makes them, with its own gate if one is given."""
    post_norm = flags.pop("post_norm", None)
    attributes = flags.pop("attributes", {})

    class Experts(nn.Module):
        def __init__(self, config: object) -> None:
            super().__init__()
            self.act_fn = activation or nn.SiLU()
            self.post_expert_norm = post_norm or nn.Identity()
            self.__dict__.update(attributes)

        if gate is not None:

            def _apply_gate(self, proj: Tensor) -> Tensor:
                return gate(proj)

    module: nn.Module = use_experts_implementation(Experts, **flags)(None)
    module.has_post_expert_norm = post_norm is not None  # type: ignore[assignment]  # no flag before 5.18
    return module


@dataclass(frozen=True, slots=True)
class Step:
    """Experts of one layout, and tokens on their way through them."""

    layout: BlobLayout
    blobs: list[Tensor]
    hidden: Tensor
    index: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> "Step":
        moved = (t.to(device) for t in (self.hidden, self.index, self.weights))
        return Step(self.layout, [blob.to(device) for blob in self.blobs], *moved)


def make_step(
    tensors_of: Callable[[int], dict[str, Tensor]],
    bits: str,
    group: int = 64,
    *,
    num_experts: int = 3,
    num_tokens: int = 2,
    top_k: int = 2,
    dtype: torch.dtype = torch.float32,
    weights_dtype: torch.dtype | None = None,
    is_transposed: bool = False,
) -> Step:
    """Experts of `tensors_of(seed)`; every token has `top_k` distinct experts."""
    made = [blob_of(tensors_of(10 * expert), bits, group, is_transposed) for expert in range(num_experts)]
    layout = made[0][0]
    first = next(s for s in layout.segments if s.name.startswith("down_proj"))
    width = first.shape[1] if is_transposed and bits == "none" else layout_width(layout)
    generator = torch.Generator().manual_seed(3)
    index = torch.stack([torch.randperm(num_experts, generator=generator)[:top_k] for _ in range(num_tokens)])
    weights = torch.rand(num_tokens, top_k, generator=generator).to(weights_dtype or dtype)
    hidden = random(num_tokens, width, seed=9).to(dtype)
    return Step(layout, [blob for _, blob in made], hidden, index, weights)


def layout_width(layout: BlobLayout) -> int:
    """H: the rows of the down projection, which is not transposed."""
    name = "down_proj" if layout.bits == "none" else "down_proj.scale"
    return layout.segment(name).shape[0]


def gated_tensors(
    hidden: int, intermediate: int, *, has_bias: bool = False, dtype: torch.dtype = torch.float32
) -> Callable[[int], dict[str, Tensor]]:
    def tensors(seed: int) -> dict[str, Tensor]:
        made = {
            "gate_up_proj": random(2 * intermediate, hidden, seed=seed) / hidden**0.5,
            "down_proj": random(hidden, intermediate, seed=seed + 1) / intermediate**0.5,
        }
        if has_bias:
            made["gate_up_proj_bias"] = random(2 * intermediate, seed=seed + 2)
            made["down_proj_bias"] = random(hidden, seed=seed + 3)
        return {name: tensor.to(dtype) for name, tensor in made.items()}

    return tensors


def pool_of(step: Step, slots: Sequence[int], num_slots: int) -> tuple[Tensor, list[int]]:
    """A pool whose slot slots[e] holds expert e, garbage elsewhere; and the experts' addresses."""
    raw = torch.full((num_slots * step.layout.stride + 4096,), GARBAGE, dtype=torch.uint8)
    raw = raw.to(step.hidden.device)
    start = -raw.data_ptr() % 4096
    pool = raw[start : start + num_slots * step.layout.stride].view(num_slots, step.layout.stride)
    for blob, slot in zip(step.blobs, slots):
        pool[slot].copy_(blob)
    return pool, [pool[slot].data_ptr() for slot in slots]


def run_step(
    kernel: GroupKernel,
    module: nn.Module,
    step: Step,
    addresses: Sequence[int],
    calls: Sequence[Sequence[int]] | None = None,
) -> Tensor:
    """[T * K, H]: the weighted rows, computed in one call for each group of experts in `calls`."""
    ordered, places = torch.sort(step.index.reshape(-1), stable=True)
    used, sizes = torch.unique_consecutive(ordered, return_counts=True)
    rows_of = dict(zip(used.tolist(), torch.split(places, sizes.tolist())))
    dtype = torch.promote_types(step.hidden.dtype, step.weights.dtype)
    out = torch.full(
        (step.weights.numel(), step.hidden.shape[1]), 7.0, dtype=dtype, device=step.hidden.device
    )
    for experts in calls or [list(rows_of)]:
        there = [expert for expert in experts if expert in rows_of]
        if not there:
            continue
        first = [0]
        for expert in there:
            first.append(first[-1] + len(rows_of[expert]))
        rows = torch.cat([rows_of[expert] for expert in there])
        kernel.run_group(
            module, [addresses[expert] for expert in there], first, rows, step.hidden, step.weights, out
        )
    return out


def exact(module: nn.Module, step: Step) -> Tensor:
    """[T * K, H]: the same by the reference kernel in float32."""
    reference = ReferenceKernel(step.layout)
    out = torch.zeros(step.weights.numel(), step.hidden.shape[1], device=step.hidden.device)
    flat = step.index.reshape(-1)
    top_k = step.weights.shape[1]
    with torch.no_grad():
        for expert, blob in enumerate(step.blobs):
            places = (flat == expert).nonzero()[:, 0]
            if len(places):
                rows = reference(module, blob, step.hidden[places // top_k].float())
                out[places] = rows * step.weights.reshape(-1, 1)[places].float()
    return out


def error_of(out: Tensor, expected: Tensor) -> float:
    """Relative, over all values."""
    return ((out.double() - expected.double()).norm() / expected.double().norm()).item()
