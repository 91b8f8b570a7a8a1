"""The reference kernel gives the bits of HQQ's dequantize and of transformers' grouped_mm."""

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from hqq.core.quantize import Quantizer
from support import layer_steps
from support.tiny_models import ARCHITECTURES, random_model, tiny_config
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from compute.kernels.reference import ReferenceKernel

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
blob_of = partial(layer_steps.blob_of, fast=False)


def hqq_dequantized(matrix: torch.Tensor, bits: int, group: int, dtype: torch.dtype) -> torch.Tensor:
    """HQQ's own way: its packing, its dequantize, with scale and zero rounded to float16 once."""
    packed, meta = Quantizer.quantize(matrix, nbits=bits, group_size=group, axis=1, device="cpu")
    meta["scale"], meta["zero"] = meta["scale"].half(), meta["zero"].half()
    meta["compute_dtype"] = dtype
    return Quantizer.dequantize(*Quantizer.to_inplace(packed, meta, device="cpu"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", ["8", "4", "3", "2"])
@pytest.mark.parametrize("shape,group", [((8, 64), 64), ((24, 192), 32), ((200, 64), 16), ((64, 128), 128)])
def test_weight_is_bit_equal_to_hqq(
    bits: str, shape: tuple[int, int], group: int, dtype: torch.dtype
) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    layout, blob = blob_of({"gate_up_proj": matrix, "down_proj": matrix * 3}, bits, group)
    kernel = ReferenceKernel(layout)
    for name, original in (("gate_up_proj", matrix), ("down_proj", matrix * 3)):
        weight = kernel.weight(blob, name, dtype)
        assert torch.equal(weight, hqq_dequantized(original, int(bits), group, dtype))
        assert weight.dtype == dtype


def test_scratch_of_a_larger_matrix_leaves_nothing_in_a_smaller_one() -> None:
    large, small = torch.randn(64, 256), torch.randn(16, 64)
    layout, blob = blob_of({"gate_up_proj": large, "down_proj": small}, "3")
    kernel = ReferenceKernel(layout)
    kernel.weight(blob, "gate_up_proj", torch.float32)
    after_large = kernel.weight(blob, "down_proj", torch.float32).clone()
    assert torch.equal(after_large, ReferenceKernel(layout).weight(blob, "down_proj", torch.float32))


def test_quantized_weight_allocates_nothing_after_the_first_call() -> None:
    layout, blob = blob_of({"gate_up_proj": torch.randn(64, 64), "down_proj": torch.randn(64, 64)}, "4")
    kernel = ReferenceKernel(layout)
    first = kernel.weight(blob, "gate_up_proj", torch.float32).data_ptr()
    assert kernel.weight(blob, "gate_up_proj", torch.float32).data_ptr() == first
    assert kernel.weight(blob, "down_proj", torch.float32).data_ptr() == first


def test_unquantized_weight_is_a_view_into_the_blob() -> None:
    layout, blob = blob_of({"gate_up_proj": torch.randn(64, 64), "down_proj": torch.randn(64, 64)}, "none")
    weight = ReferenceKernel(layout).weight(blob, "down_proj", torch.float32)
    assert weight.untyped_storage().data_ptr() == blob.untyped_storage().data_ptr()


def test_scratch_made_in_inference_mode_serves_outside_of_it() -> None:
    layout, blob = blob_of({"gate_up_proj": torch.randn(64, 64), "down_proj": torch.randn(64, 64)}, "4")
    kernel = ReferenceKernel(layout)
    with torch.inference_mode():
        inside = kernel.weight(blob, "gate_up_proj", torch.float32).clone()
    assert torch.equal(kernel.weight(blob, "gate_up_proj", torch.float32), inside)


def experts_of(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if hasattr(module, "is_concatenated"))


def own_tensors(module: nn.Module, expert: int) -> dict[str, torch.Tensor]:
    """One expert's parameters, matrices first, as the loader reads them."""
    tensors = {name: p.detach()[expert] for name, p in module.named_parameters(recurse=False)}
    return dict(sorted(tensors.items(), key=lambda item: -item[1].ndim))


def grouped_mm(module: Any, rows: torch.Tensor, expert: int) -> torch.Tensor:
    """What transformers' default implementation gives when every row goes to `expert` with weight 1."""
    index = torch.full((len(rows), 1), expert)
    function = ALL_EXPERTS_FUNCTIONS["grouped_mm"]
    result: torch.Tensor = function(module, rows, index, torch.ones(len(rows), 1, dtype=rows.dtype))
    return result


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_unquantized_expert_is_bit_equal_to_grouped_mm(arch: str, dtype: torch.dtype) -> None:
    model = random_model(tiny_config(arch)).to(dtype)
    module: Any = next(experts_of(model))
    rows = torch.randn(5, 128, generator=torch.Generator().manual_seed(1)).to(dtype)
    layout, blob = blob_of(own_tensors(module, 2), "none", is_transposed=module.is_transposed)
    with torch.no_grad():
        out = ReferenceKernel(layout)(module, blob, rows)
        assert torch.equal(out, grouped_mm(module, rows, 2))


@pytest.mark.parametrize("arch", ["olmoe", "gpt_oss"])
def test_eight_bits_come_close_to_the_unquantized_expert(arch: str) -> None:
    model = random_model(tiny_config(arch))
    module: Any = next(experts_of(model))
    rows = torch.randn(5, 128, generator=torch.Generator().manual_seed(1))
    layout, blob = blob_of(own_tensors(module, 1), "8", is_transposed=module.is_transposed)
    with torch.no_grad():
        out = ReferenceKernel(layout)(module, blob, rows)
        exact = grouped_mm(module, rows, 1)
    assert (out - exact).norm() / exact.norm() < 0.02


def test_expert_without_a_gate_uses_its_activation_and_post_norm() -> None:
    up, down = torch.randn(64, 64), torch.randn(64, 64)
    layout, blob = blob_of({"up_proj": up, "down_proj": down}, "none")
    module = SimpleNamespace(
        has_gate=False,
        has_bias=False,
        is_transposed=False,
        has_post_expert_norm=True,
        act_fn=torch.relu,
        post_expert_norm=lambda out: out * 2,
    )
    rows = torch.randn(3, 64)
    out = ReferenceKernel(layout)(module, blob, rows)  # type: ignore[arg-type]
    assert torch.equal(out, torch.relu(rows @ up.T) @ down.T * 2)


def test_gate_and_bias_of_bfloat16_serve_float32_rows() -> None:
    model = random_model(tiny_config("gpt_oss")).to(torch.bfloat16)
    module: Any = next(experts_of(model))
    layout, blob = blob_of(own_tensors(module, 0), "none", is_transposed=True)
    rows = torch.randn(4, 128)
    with torch.no_grad():
        out = ReferenceKernel(layout)(module, blob, rows)
        assert torch.equal(out, grouped_mm(module.float(), rows, 0))


def test_transformers_still_dispatches_by_the_flags_that_the_kernel_reads() -> None:
    module: Any = next(experts_of(transformers.AutoModelForCausalLM.from_config(tiny_config("gpt_oss"))))
    assert (module.has_gate, module.has_bias, module.is_transposed) == (True, True, True)
