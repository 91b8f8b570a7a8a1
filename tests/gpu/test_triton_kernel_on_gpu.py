"""The Triton kernels on a CUDA device: the reference's values, bits that depend on no slot, and speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest
import torch
from gpu.kernel_report import SHAPES, row_of
from support.layer_steps import (
    Step,
    error_of,
    exact,
    experts_module,
    gated_tensors,
    make_step,
    pool_of,
    run_step,
)
from torch import nn

from compute import kernels

if TYPE_CHECKING:
    from compute.kernels.triton_kernel import TritonKernel

pytestmark = pytest.mark.gpu

#: Relative. Activations between the projections are rounded to the rows' type.
TOLERANCE = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
DEVICE = torch.device("cuda")
CLAMPS = {"limit": 0.7, "alpha": 1.702}


def open_kernel(step: Step) -> TritonKernel:
    kernel, reason = kernels.choose(step.layout, "triton", "cuda")
    from compute.kernels.triton_kernel import TritonKernel

    assert isinstance(kernel, TritonKernel), reason
    return kernel


def check(module: nn.Module, step: Step) -> None:
    step = step.to(DEVICE)
    module = module.to(DEVICE)
    _, addresses = pool_of(step, range(len(step.blobs)), len(step.blobs))
    with torch.no_grad():
        out = run_step(open_kernel(step), module, step, addresses)
        assert error_of(out, exact(module, step)) < TOLERANCE[step.hidden.dtype]


def clamped(proj: torch.Tensor) -> torch.Tensor:
    gate, up = proj[..., ::2].clamp(max=0.7), proj[..., 1::2].clamp(-0.7, 0.7)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


@pytest.mark.parametrize("num_tokens", [1, 16, 300])
@pytest.mark.parametrize(
    "bits,group,dtype",
    [
        *((bits, 64, torch.bfloat16) for bits in ("8", "4", "3", "2", "none")),
        ("4", 32, torch.bfloat16),
        ("4", 128, torch.bfloat16),
        *((bits, 64, dtype) for bits in ("4", "none") for dtype in (torch.float16, torch.float32)),
    ],
    ids=str,
)
@pytest.mark.usefixtures("exact_products")
def test_the_kernel_comes_close_to_the_reference(
    bits: str, group: int, dtype: torch.dtype, num_tokens: int
) -> None:
    tensors = gated_tensors(256, 128, dtype=dtype if bits == "none" else torch.float32)
    check(
        experts_module(), make_step(tensors, bits, group, num_experts=4, num_tokens=num_tokens, dtype=dtype)
    )


@pytest.mark.parametrize("num_tokens", [1, 300])
@pytest.mark.parametrize("shape", [(2048, 768), (2880, 2880)], ids=str)
def test_shapes_of_real_experts(shape: tuple[int, int], num_tokens: int) -> None:
    step = make_step(gated_tensors(*shape), "4", num_tokens=num_tokens, dtype=torch.bfloat16)
    check(experts_module(), step)


@pytest.mark.parametrize("num_tokens", [2, 40])
@pytest.mark.parametrize("bits", ["4", "none"])
@pytest.mark.usefixtures("exact_products")
def test_clamped_interleaved_biased_gate(bits: str, num_tokens: int) -> None:
    module = experts_module(clamped, attributes=CLAMPS, has_bias=True)
    check(module, make_step(gated_tensors(128, 128, has_bias=True), bits, num_tokens=num_tokens))


@pytest.mark.usefixtures("exact_products")
def test_unknown_gate_and_post_norm() -> None:
    step = make_step(gated_tensors(128, 128), "4", num_tokens=20)
    check(experts_module(lambda proj: torch.sin(proj[..., ::2]) * proj[..., 1::2]), step)
    check(experts_module(post_norm=nn.LayerNorm(128)), step)


@pytest.mark.parametrize("num_tokens", [1, 5, 40, 300])
@pytest.mark.parametrize("bits", ["4", "3", "none"])
def test_slots_order_and_company_change_no_bit(bits: str, num_tokens: int) -> None:
    made = make_step(
        gated_tensors(512, 256), bits, num_experts=4, num_tokens=num_tokens, dtype=torch.bfloat16
    )
    step, module = made.to(DEVICE), experts_module()
    kernel = open_kernel(step)
    pool, all_resident = pool_of(step, [0, 1, 2, 3], 4)
    whole = run_step(kernel, module, step, all_resident)
    larger, elsewhere = pool_of(step, [60, 2, 33, 7], 64)
    orders: Sequence[Sequence[Sequence[int]]] = (
        [[0, 1, 2, 3]],
        [[3, 1], [2], [0]],
        [[2], [0], [1], [3]],
    )
    for calls in orders:
        assert torch.equal(run_step(kernel, module, step, elsewhere, calls), whole)
    del pool, larger


def test_a_step_is_recorded_as_a_graph_and_gives_the_same_bits() -> None:
    step = make_step(gated_tensors(256, 128), "4", num_tokens=1, dtype=torch.bfloat16).to(DEVICE)
    kernel, module = open_kernel(step), experts_module()
    pool, addresses = pool_of(step, [0, 1, 2], 3)
    eager = run_step(kernel, module, step, addresses)
    chosen = step.index.reshape(-1).tolist()
    places = torch.arange(len(chosen), device=DEVICE)
    rows = kernel.cut([addresses[e] for e in chosen], range(len(chosen) + 1), places, step.hidden)
    out = torch.empty_like(eager)
    kernel.run(module, rows, step.hidden, step.weights, out)
    torch.cuda.synchronize()
    out.fill_(7)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernel.run(module, rows, step.hidden, step.weights, out)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, eager)
    rows.addresses.zero_()
    out.fill_(7)
    graph.replay()
    torch.cuda.synchronize()
    assert (out == 7).all(), "absent experts are skipped, also in a graph"
    del pool


@pytest.mark.bench
@pytest.mark.timeout(300)
@pytest.mark.parametrize("bits,num_tokens", [("4", 1), ("4", 8), ("4", 512), ("2", 1)])
@pytest.mark.parametrize("shape", SHAPES)
def test_speed(shape: str, bits: str, num_tokens: int) -> None:
    """`pytest -m "gpu and bench" -s` prints it."""
    from compute.kernels.triton_measure import measure_on_device

    hidden, intermediate, top_k = SHAPES[shape]
    figures = measure_on_device(hidden, intermediate, bits, num_tokens=num_tokens, top_k=top_k)
    print(f"\n{shape}, {bits} bit, {num_tokens} tokens: {row_of(figures)}")
    assert figures.bytes_per_s > 0
