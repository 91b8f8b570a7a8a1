"""The CPU kernel computes what the reference computes, row by row, on any threads and instruction set."""

import ctypes
import itertools
import mmap
import os
from typing import Any

import numpy as np
import pytest
import torch
from support.layer_steps import blob_of, random
from support.tiny_models import ARCHITECTURES, random_model, tiny_config
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.integrations.moe import use_experts_implementation

from compute import kernels
from compute.experts import is_experts_module
from compute.kernels import binding, build
from compute.kernels.cpu import GROUPS, ISAS, CpuKernel
from compute.kernels.measure import gated_experts, gated_layout, measure_kernel
from compute.kernels.reference import ReferenceKernel
from protocol.blob import BlobLayout

HAS_LIBRARY = not isinstance(binding.library(), str)
pytestmark = [
    pytest.mark.skipif(not HAS_LIBRARY, reason="cpu.c is not compiled here"),
    pytest.mark.usefixtures("one_thread"),
]

#: The relative error of an expert's output that a variant may have against float32.
TOLERANCE = {"int16": 2e-4, "fp32": 3e-6}
MACHINE_ISAS = [
    isa
    for n, isa in enumerate(ISAS)
    if HAS_LIBRARY and binding.library().sidestage_has_isa(n)  # type: ignore[union-attr]
]


def gated(
    hidden: int, intermediate: int, bits: str, group: int = 64, seed: int = 1
) -> tuple[BlobLayout, Tensor]:
    """An expert whose intermediate values are of the order of one."""
    tensors = {
        "gate_up_proj": random(2 * intermediate, hidden, seed=seed) / hidden**0.5,
        "down_proj": random(hidden, intermediate, seed=seed + 1) / intermediate**0.5,
    }
    return blob_of(tensors, bits, group)


def ungated_experts(activation: nn.Module) -> nn.Module:
    class Experts(nn.Module):
        def __init__(self, config: object) -> None:
            super().__init__()
            self.act_fn = activation

    module: nn.Module = use_experts_implementation(Experts, has_gate=False)(None)
    return module


def error_of(out: Tensor, exact: Tensor) -> float:
    return ((out.double() - exact.double()).norm() / exact.double().norm()).item()


# --- against the reference ------------------------------------------------------------------------

#: hidden, intermediate, group: columns that are no multiple of a register, rows that fill no tile,
#: more columns than a tile has, every kind of group.
SHAPES = [
    (80, 48, 16),
    (96, 160, 32),
    (192, 64, 64),
    (64, 320, 64),
    (2112, 192, 64),
    (128, 384, 128),
    (512, 256, 256),
    (64, 2112, 64),
    (3072, 1024, 1024),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bits", ["8", "4", "3", "2"])
def test_every_shape_comes_close_to_the_reference(bits: str, shape: tuple[int, int, int]) -> None:
    hidden, intermediate, group = shape
    layout, blob = gated(hidden, intermediate, bits, group)
    module, rows = gated_experts(), random(5, hidden, seed=9)
    exact = ReferenceKernel(layout)(module, blob, rows)
    for isa, (variant, tolerance) in itertools.product(MACHINE_ISAS, TOLERANCE.items()):
        out = CpuKernel(layout, variant=variant, isa=isa)(module, blob, rows)
        assert error_of(out, exact) < tolerance, (isa, variant)


def custom_experts(gate: Any, has_bias: bool = False, post_norm: nn.Module | None = None) -> nn.Module:
    """An experts module with a gate that C does not know."""

    class Experts(nn.Module):
        def __init__(self, config: object) -> None:
            super().__init__()
            self.act_fn = nn.SiLU()
            self.post_expert_norm = post_norm or nn.Identity()

        def _apply_gate(self, proj: Tensor) -> Tensor:
            return gate(proj)  # type: ignore[no-any-return]

    module: nn.Module = use_experts_implementation(Experts, has_bias=has_bias)(None)
    module.has_post_expert_norm = post_norm is not None  # type: ignore[assignment]  # no flag before 5.18
    return module


@pytest.mark.parametrize(
    "bits,num_rows", [("8", 1), ("8", 13), ("4", 2), ("4", 22), ("3", 8), ("2", 4), ("2", 20)]
)
def test_rows_that_fill_no_tile_are_all_there(bits: str, num_rows: int) -> None:
    layout, blob = blob_of({"gate_up_proj": random(num_rows, 64), "down_proj": random(num_rows, 64)}, bits)
    module = custom_experts(lambda proj: proj.repeat(1, 64)[:, :64])
    rows = random(3, 64)
    exact = ReferenceKernel(layout)(module, blob, rows)
    for isa in MACHINE_ISAS:
        assert error_of(CpuKernel(layout, isa=isa)(module, blob, rows), exact) < TOLERANCE["int16"]


@pytest.mark.parametrize("bits", ["8", "4", "3", "2"])
def test_fp32_variant_multiplies_the_reference_weights_themselves(bits: str) -> None:
    layout, blob = gated(64, 64, bits)
    weights = ReferenceKernel(layout).weight(blob, "gate_up_proj", torch.float32).clone()
    proj: list[Tensor] = []
    module = custom_experts(lambda out: (proj.append(out), out[:, :64])[1])
    CpuKernel(layout, variant="fp32")(module, blob, torch.eye(64))
    assert torch.equal(proj[0], weights.T)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 7, 8, 16, 33, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_any_number_of_rows_in_any_dtype(dtype: torch.dtype, num_rows: int) -> None:
    layout, blob = gated(128, 64, "4")
    module, rows = gated_experts(), random(num_rows, 128).to(dtype)
    exact = ReferenceKernel(layout)(module, blob, rows.float())
    out = CpuKernel(layout)(module, blob, rows)
    assert out.dtype == dtype and out.shape == rows.shape
    assert error_of(out, exact) < max(TOLERANCE["int16"], torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_pytorch_tanh", "gelu_new", "relu", "relu2", "tanh"])
def test_activations_are_torch_ones(name: str) -> None:
    layout, blob = blob_of({"up_proj": random(256, 64), "down_proj": torch.eye(64, 256)}, "8")
    module, rows = ungated_experts(ACT2FN[name]), random(9, 64) / 2
    exact = ReferenceKernel(layout)(module, blob, rows)
    for isa in MACHINE_ISAS:
        assert error_of(CpuKernel(layout, variant="fp32", isa=isa)(module, blob, rows), exact) < 3e-6, isa


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_experts_of_real_architectures(arch: str) -> None:
    model = random_model(tiny_config(arch))
    module = next(filter(is_experts_module, model.modules()))
    tensors = {name: p.detach()[1] for name, p in module.named_parameters(recurse=False)}
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].ndim))
    layout, blob = blob_of(tensors, "4", 32, is_transposed=bool(module.is_transposed))
    rows = random(6, 128)
    with torch.no_grad():
        exact = ReferenceKernel(layout)(module, blob, rows)
        out = CpuKernel(layout)(module, blob, rows)
    assert error_of(out, exact) < 5e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_biases_and_a_post_norm_are_applied(dtype: torch.dtype) -> None:
    tensors = {
        "gate_up_proj": random(128, 64) / 8,
        "down_proj": random(64, 64) / 8,
        "gate_up_proj_bias": random(128, seed=2).to(dtype),
        "down_proj_bias": random(64, seed=3).to(dtype),
    }
    layout, blob = blob_of(tensors, "8")
    module = custom_experts(lambda proj: proj[:, ::2] * proj[:, 1::2], True, nn.LayerNorm(64))
    rows = random(4, 64)
    with torch.no_grad():
        exact = ReferenceKernel(layout)(module, blob, rows)
        assert error_of(CpuKernel(layout)(module, blob, rows), exact) < TOLERANCE["int16"]


@pytest.mark.parametrize("variant", ["int16", "fp32"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_spoils_itself_alone(value: float, variant: str) -> None:
    layout, blob = gated(128, 64, "4")
    rows = random(6, 128)
    kernel, module = CpuKernel(layout, variant=variant), gated_experts()
    clean = kernel(module, blob, rows)
    rows[2, 70] = value
    out = kernel(module, blob, rows)
    assert not torch.isfinite(out[2]).any()
    assert torch.equal(out[[0, 1, 3, 4, 5]], clean[[0, 1, 3, 4, 5]])
    assert torch.equal(kernel(module, blob, rows[:1]), clean[:1])


def test_no_rows_at_all_are_no_rows() -> None:
    layout, blob = gated(64, 64, "4")
    assert CpuKernel(layout)(gated_experts(), blob, torch.empty(0, 64)).shape == (0, 64)


def test_rows_of_zeros_and_of_the_tiniest_numbers_give_zeros() -> None:
    layout, blob = gated(64, 64, "4")
    rows = torch.stack([torch.zeros(64), torch.full((64,), 1e-42)])
    assert CpuKernel(layout)(gated_experts(), blob, rows).abs().max() < 1e-30


# --- what a result does not depend on -------------------------------------------------------------


@pytest.mark.parametrize("isa", MACHINE_ISAS)
@pytest.mark.parametrize("variant", ["int16", "fp32"])
@pytest.mark.parametrize("bits,group", [("8", 64), ("4", 32), ("4", 64), ("3", 64), ("2", 128), ("4", 16)])
def test_a_row_does_not_depend_on_the_rows_beside_it(bits: str, group: int, variant: str, isa: str) -> None:
    layout, blob = gated(2176, 256, bits, group)
    kernel, module = CpuKernel(layout, variant=variant, isa=isa), gated_experts()
    rows = random(13, 2176)
    together = kernel(module, blob, rows)
    for start, end in [(0, 1), (1, 3), (3, 6), (6, 13)]:
        assert torch.equal(kernel(module, blob, rows[start:end]), together[start:end])


@pytest.mark.parametrize("num_rows", [1, 2, 33, 300])
def test_threads_change_no_bit(num_rows: int) -> None:
    layout, blob = gated(1024, 512, "4")
    module, rows = gated_experts(), random(num_rows, 1024).bfloat16()
    alone = CpuKernel(layout, threads=1)(module, blob, rows)
    for threads in (2, 3, 5):
        assert torch.equal(CpuKernel(layout, threads=threads)(module, blob, rows), alone)


def test_the_address_of_a_blob_changes_no_bit() -> None:
    layout, blob = gated(128, 64, "3")
    module, rows, kernel = gated_experts(), random(3, 128), CpuKernel(layout)
    moved = torch.empty(layout.stride + 4096, dtype=torch.uint8)[4096 - 64 :][: layout.stride]
    moved.copy_(blob)
    assert torch.equal(kernel(module, moved, rows), kernel(module, blob, rows))


def test_nothing_beyond_the_blob_is_read() -> None:
    layout, blob = gated(256, 256, "8")
    assert layout.segments[-1].offset + layout.segments[-1].num_bytes == layout.stride
    memory = mmap.mmap(-1, layout.stride + mmap.PAGESIZE)
    guarded = np.frombuffer(memory, np.uint8)
    page = guarded.ctypes.data + layout.stride
    libc = ctypes.CDLL(None)
    assert libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    guarded[: layout.stride] = blob.numpy()
    at_the_end = torch.from_numpy(guarded[: layout.stride])
    for isa in MACHINE_ISAS:
        for num_rows in (1, 8):
            rows = random(num_rows, 256)
            out = CpuKernel(layout, isa=isa)(gated_experts(), at_the_end, rows)
            assert torch.isfinite(out).all()


def test_kernels_of_different_layouts_share_threads_but_no_memory() -> None:
    small, small_blob = gated(64, 64, "4")
    large, large_blob = gated(512, 256, "3")
    module = gated_experts()
    kernels_ = CpuKernel(small, threads=2), CpuKernel(large, threads=2)
    first = [kernels_[0](module, small_blob, random(2, 64)), kernels_[1](module, large_blob, random(2, 512))]
    for _ in range(20):
        assert torch.equal(kernels_[0](module, small_blob, random(2, 64)), first[0])
        assert torch.equal(kernels_[1](module, large_blob, random(2, 512)), first[1])


def test_a_fork_computes_with_threads_of_its_own() -> None:
    layout, blob = gated(512, 256, "4")
    module, rows = gated_experts(), random(2, 512)
    kernel = CpuKernel(layout, threads=2)
    expected = kernel(module, blob, rows)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if torch.equal(kernel(module, blob, rows), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# --- many experts in one call ---------------------------------------------------------------------


def routed(
    num_tokens: int, num_experts: int, top_k: int
) -> tuple[Tensor, list[int], list[int], Tensor, Tensor]:
    """weights, used experts, first rows, places and index, as a layer-step groups them."""
    generator = torch.Generator().manual_seed(3)
    index = torch.stack([torch.randperm(num_experts, generator=generator)[:top_k] for _ in range(num_tokens)])
    weights = torch.rand(num_tokens, top_k, generator=generator)
    ordered, places = torch.sort(index.reshape(-1), stable=True)
    used, sizes = torch.unique_consecutive(ordered, return_counts=True)
    return weights, used.tolist(), [0, *sizes.cumsum(0).tolist()], places, index


@pytest.mark.parametrize("num_tokens", [1, 3, 150])
@pytest.mark.parametrize(
    "dtypes", list(itertools.product([torch.float32, torch.bfloat16, torch.float16], repeat=2))
)
@pytest.mark.parametrize("has_known_gate", [True, False])
def test_a_group_is_bit_equal_to_expert_after_expert(
    num_tokens: int, dtypes: tuple[torch.dtype, torch.dtype], has_known_gate: bool
) -> None:
    experts = [gated(128, 64, "4", seed=seed) for seed in range(6)]
    layout = experts[0][0]
    module = gated_experts() if has_known_gate else custom_experts(lambda p: p[:, ::2] * p[:, 1::2])
    hidden = random(num_tokens, 128).to(dtypes[0])
    weights, used, first, places, _ = routed(num_tokens, 6, 3)
    weights = weights.to(dtypes[1])
    kernel = CpuKernel(layout, threads=2)
    out = torch.zeros(num_tokens * 3, 128, dtype=torch.promote_types(*dtypes))
    expected = out.clone()
    kernel.run_group(module, [experts[e][1].data_ptr() for e in used], first, places, hidden, weights, out)
    for number, expert in enumerate(used):
        mine = places[first[number] : first[number + 1]]
        rows = kernel(module, experts[expert][1], hidden[mine // 3])
        expected[mine] = rows * weights.reshape(-1, 1)[mine]
    assert torch.equal(out, expected)


def test_a_group_of_some_experts_leaves_the_places_of_others_alone() -> None:
    layout, blob = gated(128, 64, "4")
    out = torch.full((4, 128), 7.0)
    CpuKernel(layout).run_group(
        gated_experts(), [blob.data_ptr()], [0, 1], torch.tensor([2]), random(2, 128), torch.ones(2, 2), out
    )
    assert (out[[0, 1, 3]] == 7).all() and (out[2] != 7).any()


def test_a_place_outside_of_the_output_is_refused() -> None:
    layout, blob = gated(128, 64, "4")
    with pytest.raises(AssertionError, match="place"):
        CpuKernel(layout).run_group(
            gated_experts(),
            [blob.data_ptr()],
            [0, 1],
            torch.tensor([4]),
            random(2, 128),
            torch.ones(2, 2),
            torch.empty(4, 128),
        )


def test_hundreds_of_experts_and_rows_go_in_waves() -> None:
    layout, blob = gated(64, 64, "4")
    kernel, module = CpuKernel(layout, threads=2), gated_experts()
    rows = random(1100, 64)
    first = [*range(300), 1100]
    out = kernel.run_rows(module, [blob.data_ptr()] * 300, first, rows)
    assert torch.equal(out, kernel(module, blob, rows))


# --- the choice -----------------------------------------------------------------------------------


def test_quantized_experts_get_the_cpu_kernel_and_others_torch() -> None:
    kernel, _ = kernels.choose(gated_layout(64, 64, "4", 64))
    assert kernel.name == f"cpu-int16-{binding.best_isa()}"
    kernel, reason = kernels.choose(BlobLayout.pack("none", 0, [("down_proj", "float32", (64, 64))]))
    assert kernel.name == "reference" and "torch" in reason


def test_a_kernel_is_chosen_by_name() -> None:
    layout = gated_layout(64, 64, "4", 64)
    assert kernels.choose(layout, "reference")[0].name == "reference"
    assert kernels.choose(layout, "cpu-fp32")[0].name == f"cpu-fp32-{binding.best_isa()}"
    with pytest.raises(ValueError, match="known are auto"):
        kernels.choose(layout, "gpu")


def test_without_the_library_torch_serves_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    monkeypatch.setattr(binding, "LIBRARY", tmp_path / "libcpu.so")
    binding.library.cache_clear()
    kernels._say_once.cache_clear()
    try:
        for _ in range(2):
            kernel, reason = kernels.choose(gated_layout(64, 64, "4", 64))
            assert kernel.name == "reference" and "compiler" in reason
        assert len(caplog.records) == 1
        with pytest.raises(ValueError, match="compiler"):
            kernels.choose(gated_layout(64, 64, "4", 64), "cpu")
    finally:
        binding.library.cache_clear()


def test_what_the_kernel_cannot_run_is_refused_with_a_sentence() -> None:
    unquantized = BlobLayout.pack("none", 0, [("down_proj", "float32", (64, 64))])
    with pytest.raises(ValueError, match="8, 4, 3, 2 bits"):
        CpuKernel(unquantized)
    with pytest.raises(ValueError, match="int16, fp32"):
        CpuKernel(gated_layout(64, 64, "4", 64), variant="int8")
    with pytest.raises(ValueError, match="generic, avx2, avx512"):
        CpuKernel(gated_layout(64, 64, "4", 64), isa="sse")


def test_every_group_that_a_store_may_have_is_known() -> None:
    from loader import quantize

    assert set(quantize.GROUPS) <= set(GROUPS)


def test_without_a_compiler_the_reason_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "no C compiler" in build.compile_library(tmp_path / "libcpu.so")
    monkeypatch.setenv("CC", "false")
    assert "failed" in build.compile_library(tmp_path / "libcpu.so")
    assert not list(tmp_path.iterdir())


def test_a_measurement_tells_all_three_figures() -> None:
    figures = measure_kernel(64, 64, repeats=1, pool_bytes=64 * 2**20)
    assert figures.share_of_read > 0 and figures.times_linear > 0
    assert figures.name.startswith("cpu-int16")
