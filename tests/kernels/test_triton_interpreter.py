"""The Triton kernels compute what the reference computes, and a row's bits depend on nothing else.

Triton decides on import whether its kernels are interpreted, on the CPU, so the tests of this file
run in a process of their own; `TRITON_INTERPRET=1 pytest` on this file shows each by its name.
"""

import ctypes
import importlib.util
import mmap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from support.interpreted import IS_INTERPRETED, quick_calls, run_interpreted
from support.layer_steps import (
    Step,
    error_of,
    exact,
    experts_module,
    gated_tensors,
    make_step,
    pool_of,
    random,
    run_step,
)
from support.tiny_models import random_model, tiny_config
from torch import Tensor, nn

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.usefixtures("one_thread"),
]

#: Relative, for float32 activations; the interpreter truncates where a GPU rounds to bfloat16.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 3e-2}
#: The decode kernel, and the block kernel.
PATHS = {"decode": 2, "blocks": 9}

if not IS_INTERPRETED:

    @pytest.mark.timeout(600)
    def test_the_kernels_are_right_in_tritons_interpreter() -> None:
        run_interpreted(__file__)


else:
    from triton.runtime import interpreter

    from compute.kernels.triton_kernel import TritonKernel

    @pytest.fixture(autouse=True, scope="module")
    def in_less_time() -> Iterator[None]:
        with quick_calls():
            yield

    @pytest.fixture
    def bfloat16_dot(monkeypatch: pytest.MonkeyPatch) -> None:
        """The interpreter multiplies bfloat16 as if its bits were whole numbers: give it float32."""
        plain = interpreter.InterpreterBuilder.create_dot

        def widened(self: Any, a: Any, b: Any, *others: Any) -> Any:
            for operand in (a, b):
                if operand.data.dtype == np.uint16:
                    operand.data = (operand.data.astype(np.uint32) << 16).view(np.float32)
            return plain(self, a, b, *others)

        monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", widened)

    def check(module: nn.Module, step: Step) -> None:
        _, addresses = pool_of(step, range(len(step.blobs)), len(step.blobs))
        with torch.no_grad():
            out = run_step(TritonKernel(step.layout), module, step, addresses)
        assert error_of(out, exact(module, step)) < TOLERANCE[step.hidden.dtype]

    # --- against the reference --------------------------------------------------------------------

    @pytest.mark.parametrize("num_tokens", PATHS.values(), ids=PATHS)
    @pytest.mark.parametrize("shape", [(32, 64, 32), (64, 64, 64), (128, 128, 128)], ids=str)
    @pytest.mark.parametrize("bits", ["8", "4", "3", "2"])
    def test_every_width_and_group(bits: str, shape: tuple[int, int, int], num_tokens: int) -> None:
        hidden, intermediate, group = shape
        tensors, num_rows = gated_tensors(hidden, intermediate), 1 if num_tokens == 2 else num_tokens
        step = make_step(tensors, bits, group, num_tokens=num_rows, num_experts=1, top_k=1)
        check(experts_module(), step)

    @pytest.mark.parametrize("num_tokens", PATHS.values(), ids=PATHS)
    @pytest.mark.parametrize(
        "bits,shape",
        [
            ("8", (48, 16, 16)),
            ("4", (80, 16, 16)),
            ("3", (96, 32, 32)),
            ("2", (160, 32, 32)),
            ("4", (256, 256, 256)),
            ("none", (36, 20, 0)),
        ],
    )
    def test_sides_that_no_tile_divides(bits: str, shape: tuple[int, int, int], num_tokens: int) -> None:
        hidden, intermediate, group = shape
        tensors, num_rows = gated_tensors(hidden, intermediate), 1 if num_tokens == 2 else num_tokens
        step = make_step(tensors, bits, group, num_tokens=num_rows, num_experts=1, top_k=1)
        check(experts_module(), step)

    @pytest.mark.parametrize("num_tokens", [1, 8, 9, 40, 130])
    def test_any_number_of_tokens(num_tokens: int) -> None:
        step = make_step(gated_tensors(32, 32), "4", 32, num_tokens=num_tokens, num_experts=2, top_k=1)
        check(experts_module(), step)

    @pytest.mark.parametrize("num_tokens", PATHS.values(), ids=PATHS)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("bits", ["4", "none"])
    def test_narrow_activations(bits: str, dtype: torch.dtype, num_tokens: int, bfloat16_dot: None) -> None:
        tensors = gated_tensors(32, 32, dtype=dtype if bits == "none" else torch.float32)
        check(experts_module(), make_step(tensors, bits, 32, num_tokens=num_tokens, dtype=dtype))

    @pytest.mark.parametrize(
        "weights,num_tokens",
        [(torch.bfloat16, 1), (torch.float16, 9), (torch.float32, 1), (torch.float32, 9)],
    )
    def test_unquantized_weights_of_any_type(weights: torch.dtype, num_tokens: int) -> None:
        check(
            experts_module(), make_step(gated_tensors(32, 32, dtype=weights), "none", num_tokens=num_tokens)
        )

    @pytest.mark.parametrize("num_tokens", PATHS.values(), ids=PATHS)
    def test_transposed_weights(num_tokens: int) -> None:
        def tensors(seed: int) -> dict[str, Tensor]:
            return {name: tensor.t() for name, tensor in gated_tensors(32, 32)(seed).items()}

        step = make_step(tensors, "none", num_tokens=num_tokens, is_transposed=True)
        check(experts_module(is_transposed=True), step)

    # --- gates ------------------------------------------------------------------------------------

    def clamped(proj: Tensor, is_interleaved: bool) -> Tensor:
        gate, up = (proj[..., ::2], proj[..., 1::2]) if is_interleaved else proj.chunk(2, dim=-1)
        gate, up = gate.clamp(max=0.7), up.clamp(-0.7, 0.7)
        return (up + 1) * gate * torch.sigmoid(1.702 * gate)

    def clamped_silu(proj: Tensor) -> Tensor:
        gate, up = proj.chunk(2, dim=-1)
        return nn.functional.silu(gate.clamp(max=0.5)) * up.clamp(-0.5, 0.5)

    LIMITS = {"limit": 0.7, "alpha": 1.702}
    GATES: dict[str, tuple[Callable[[Tensor], Tensor] | None, dict[str, Any], bool]] = {
        "silu": (None, {"activation": nn.SiLU()}, True),
        "gelu": (None, {"activation": nn.GELU()}, True),
        "gelu_tanh": (None, {"activation": nn.GELU("tanh")}, True),
        "relu": (None, {"activation": nn.ReLU()}, True),
        "clamped_interleaved": (lambda p: clamped(p, True), {"attributes": LIMITS}, True),
        "clamped_halves": (lambda p: clamped(p, False), {"attributes": LIMITS}, True),
        "clamped_silu": (clamped_silu, {"attributes": {"swiglu_limit": 0.5}}, True),
        "unknown": (lambda p: torch.sin(p[..., ::2]) * p[..., 1::2], {}, False),
        "unknown_activation": (None, {"activation": nn.Tanh()}, False),
    }

    @pytest.mark.parametrize(
        "name,num_tokens", [*((name, 1) for name in GATES), ("clamped_interleaved", 9), ("unknown", 9)]
    )
    def test_gates(name: str, num_tokens: int) -> None:
        gate, arguments, is_fused = GATES[name]
        module = experts_module(gate, **arguments, has_bias=True)
        step = make_step(gated_tensors(32, 32, has_bias=True), "4", 32, num_tokens=num_tokens)
        kernel = TritonKernel(step.layout)
        assert (kernel._anatomy(module, step.hidden).gate is not None) == is_fused
        check(module, step)

    @pytest.mark.parametrize("bits", ["8", "3", "2", "none"])
    def test_interleaved_gate_in_every_width(bits: str) -> None:
        module = experts_module(lambda p: clamped(p, True), attributes=LIMITS)
        check(module, make_step(gated_tensors(32, 32), bits, 32))

    @pytest.mark.parametrize("bits,num_tokens", [("3", 2), ("8", 9), ("none", 2)])
    @pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh()], ids=str)
    def test_experts_without_a_gate(activation: nn.Module, bits: str, num_tokens: int) -> None:
        def tensors(seed: int) -> dict[str, Tensor]:
            return {"up_proj": random(32, 32, seed=seed) / 8, "down_proj": random(32, 32, seed=seed + 1) / 8}

        module = experts_module(activation=activation, has_gate=False)
        check(module, make_step(tensors, bits, 32, num_tokens=num_tokens))

    @pytest.mark.parametrize("bits", ["4", "none"])
    def test_gpt_oss_as_transformers_builds_it(bits: str) -> None:
        model = random_model(
            tiny_config("gpt_oss", hidden_size=32, intermediate_size=32, num_hidden_layers=1)
        )
        module = next(m for m in model.modules() if hasattr(m, "is_transposed"))
        parameters = dict(module.named_parameters(recurse=False))

        def tensors(seed: int) -> dict[str, Tensor]:
            return {name: parameter.detach()[seed // 10] for name, parameter in parameters.items()}

        step = make_step(tensors, bits, 32, is_transposed=True, num_experts=4)
        kernel = TritonKernel(step.layout)
        gate = kernel._anatomy(module, step.hidden).gate
        assert gate is not None and gate.pairing == "interleaved" and gate.limit == 7.0
        check(module, step)

    def test_a_norm_after_the_expert() -> None:
        module = experts_module(post_norm=nn.LayerNorm(32))
        check(module, make_step(gated_tensors(32, 32), "4", 32))

    # --- what a row's bits depend on --------------------------------------------------------------

    @pytest.mark.parametrize("num_tokens", PATHS.values(), ids=PATHS)
    @pytest.mark.parametrize("bits", ["4", "none"])
    def test_slots_order_and_company_change_no_bit(bits: str, num_tokens: int) -> None:
        step = make_step(gated_tensors(32, 32), bits, 32, num_experts=4, num_tokens=num_tokens)
        kernel, module = TritonKernel(step.layout), experts_module()
        _, all_resident = pool_of(step, [0, 1, 2, 3], 4)
        whole = run_step(kernel, module, step, all_resident)
        _, elsewhere = pool_of(step, [6, 2, 5, 0], 7)
        for calls in ([[0, 1, 2, 3]], [[3, 1], [2], [0]], [[2], [0], [1], [3]]):
            assert torch.equal(run_step(kernel, module, step, elsewhere, calls), whole)

    @pytest.mark.parametrize("num_tokens", PATHS.values(), ids=PATHS)
    def test_an_absent_expert_is_skipped_and_its_places_are_left_alone(num_tokens: int) -> None:
        step = make_step(gated_tensors(32, 32), "4", 32, num_tokens=num_tokens)
        kernel, module = TritonKernel(step.layout), experts_module()
        _, addresses = pool_of(step, [0, 1, 2], 3)
        whole = run_step(kernel, module, step, addresses)
        out = run_step(kernel, module, step, [addresses[0], -1, addresses[2]])
        is_absent = step.index.reshape(-1) == 1
        assert (out[is_absent] == 7).all() and torch.equal(out[~is_absent], whole[~is_absent])

    @pytest.mark.parametrize("num_tokens", [1, 9])
    def test_nothing_beyond_the_blob_is_read(num_tokens: int) -> None:
        """Its last byte is a bias's, tiles are larger than the matrix, and the next page is forbidden."""
        tensors = gated_tensors(96, 16, has_bias=True)
        step = make_step(tensors, "4", 16, num_experts=1, top_k=1, num_tokens=num_tokens)
        last, stride = step.layout.segments[-1], step.layout.stride
        assert last.offset + last.num_bytes == stride
        memory = np.frombuffer(mmap.mmap(-1, stride + mmap.PAGESIZE), np.uint8)
        beyond = ctypes.c_void_p(memory.ctypes.data + stride)
        assert ctypes.CDLL(None).mprotect(beyond, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        memory[:stride] = step.blobs[0].numpy()
        module = experts_module(has_bias=True)
        out = run_step(TritonKernel(step.layout), module, step, [memory.ctypes.data])
        assert error_of(out, exact(module, step)) < TOLERANCE[torch.float32]

    def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
        step = make_step(gated_tensors(32, 32), "4", 32, num_tokens=40, num_experts=1, top_k=1)
        kernel, module = TritonKernel(step.layout), experts_module()
        whole = run_step(kernel, module, step, [step.blobs[0].data_ptr()])
        shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(4))
        moved = Step(step.layout, step.blobs, step.hidden[shuffled], step.index, step.weights[shuffled])
        assert torch.equal(run_step(kernel, module, moved, [step.blobs[0].data_ptr()]), whole[shuffled])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
    def test_a_group_is_single_experts_rounded_and_then_weighted(dtype: torch.dtype) -> None:
        step = make_step(
            gated_tensors(32, 32), "4", 32, num_experts=1, top_k=1, num_tokens=3, dtype=dtype,
            weights_dtype=torch.float32,
        )  # fmt: skip
        kernel, module = TritonKernel(step.layout), experts_module()
        rows = kernel(module, step.blobs[0], step.hidden)
        assert rows.dtype == dtype
        grouped = run_step(kernel, module, step, [step.blobs[0].data_ptr()])
        assert torch.equal(rows * step.weights, grouped)

    @pytest.mark.parametrize("bits", ["8", "4", "3", "2"])
    def test_decode_multiplies_the_reference_weights_exactly(bits: str) -> None:
        """Rows of the identity read the weights out; what is left is the order of two roundings."""
        seen: list[Tensor] = []
        module = experts_module(lambda proj: (seen.append(proj), proj[..., :64] * 0)[1])
        tensors = gated_tensors(64, 64)(0)
        step = make_step(lambda seed: tensors, bits, 64, num_experts=1, top_k=1, num_tokens=8)
        from compute.kernels.reference import ReferenceKernel

        TritonKernel(step.layout)(module, step.blobs[0], torch.eye(64)[:3])
        weights = ReferenceKernel(step.layout).weight(step.blobs[0], "gate_up_proj", torch.float32)
        assert torch.allclose(seen[-1], weights[:, :3].T, rtol=1e-6, atol=1e-7)
