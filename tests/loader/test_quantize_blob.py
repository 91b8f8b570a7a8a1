"""Blobs hold HQQ's codes without loss, in the layout that the kernels read."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hqq.core.quantize import Quantizer

from loader.anatomy import Anatomy, ExpertParameter
from loader.quantize import pack_codes, plan_layout, quantize, write_blob
from protocol.blob import BLOB_ALIGNMENT, CODE_PLANES
from protocol.errors import ModelError


def anatomy(*, is_transposed: bool = False, **shapes: tuple[int, ...]) -> Anatomy:
    parameters = tuple(ExpertParameter(name, shape) for name, shape in shapes.items())
    return cast(Anatomy, SimpleNamespace(parameters=parameters, is_transposed=is_transposed))


def dtypes(model: Anatomy, dtype: torch.dtype = torch.float32) -> dict[str, torch.dtype]:
    return {parameter.name: dtype for parameter in model.parameters}


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("bits", ["8", "4", "3", "2"])
@pytest.mark.parametrize("shape,group", [((16, 64), 64), ((40, 96), 32), ((8, 320), 64)])
def test_codes_are_those_of_hqq(bits: str, shape: tuple[int, int], group: int, fast: bool) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    codes, scale, zero = quantize(matrix, bits, group, fast=fast)
    packed, meta = Quantizer.quantize(
        matrix, nbits=int(bits), group_size=group, axis=1, optimize=not fast, device="cpu"
    )
    expected = Quantizer.unpack[meta["packing"]](packed)[: matrix.numel() // group].view(shape)
    assert torch.equal(codes, expected.to(torch.uint8))
    assert torch.equal(scale.view(-1, 1), meta["scale"].half())
    assert torch.equal(zero.view(-1, 1), meta["zero"].half())


@pytest.mark.parametrize("bits", ["8", "4", "3", "2"])
def test_packed_rows_are_where_the_layout_says(bits: str) -> None:
    num_rows, num_columns = 24, 5
    codes = torch.randint(0, 2 ** int(bits), (num_rows, num_columns), dtype=torch.uint8)
    planes = pack_codes(codes, bits)
    rest = int(bits)
    for end, width in CODE_PLANES[bits]:
        rest -= width
        plane, per_byte = planes[end], 8 // width
        assert plane.shape == (num_rows // per_byte, num_columns)
        for row in range(num_rows):
            part, byte_row = divmod(row, num_rows // per_byte)
            unpacked = (plane[byte_row] >> (8 - width * (part + 1))) & (2**width - 1)
            assert torch.equal(unpacked, (codes[row] >> rest) & (2**width - 1))


def test_four_bit_bytes_are_hqqs_own_packing() -> None:
    codes = torch.randint(0, 16, (32, 7), dtype=torch.uint8)
    assert torch.equal(pack_codes(codes, "4")[".q"], Quantizer.pack["4bit_u8"](codes))


def test_two_bit_bytes_are_hqqs_own_packing() -> None:
    codes = torch.randint(0, 4, (32, 7), dtype=torch.uint8)
    assert torch.equal(pack_codes(codes, "2")[".q"], Quantizer.pack["2bit_u8"](codes))


def test_layout_of_four_bits() -> None:
    model = anatomy(gate_up_proj=(128, 192), down_proj=(192, 64))
    layout = plan_layout(model, dtypes(model), "4", 64)
    assert [(s.name, s.dtype, s.shape) for s in layout.segments] == [
        ("gate_up_proj.q", "uint8", (64, 192)),
        ("gate_up_proj.scale", "float16", (128, 3)),
        ("gate_up_proj.zero", "float16", (128, 3)),
        ("down_proj.q", "uint8", (96, 64)),
        ("down_proj.scale", "float16", (192, 1)),
        ("down_proj.zero", "float16", (192, 1)),
    ]


def test_layout_of_three_bits_has_two_planes() -> None:
    model = anatomy(gate_up_proj=(128, 192), down_proj=(192, 64))
    shapes = {s.name: s.shape for s in plan_layout(model, dtypes(model), "3", 64).segments}
    assert shapes["gate_up_proj.q"] == (32, 192) and shapes["gate_up_proj.q1"] == (16, 192)


def test_transposed_matrices_are_quantized_along_their_inputs() -> None:
    model = anatomy(is_transposed=True, gate_up_proj=(192, 128), down_proj=(64, 192), down_proj_bias=(192,))
    layout = plan_layout(model, dtypes(model, torch.bfloat16), "8", 64)
    assert layout.segment("gate_up_proj.q").shape == (128, 192)
    assert layout.segment("gate_up_proj.scale").shape == (128, 3)
    assert layout.segment("down_proj_bias").dtype == "bfloat16"


def test_unquantized_layout_keeps_shape_and_dtype() -> None:
    model = anatomy(is_transposed=True, gate_up_proj=(100, 30), down_proj=(15, 100))
    layout = plan_layout(model, dtypes(model, torch.bfloat16), "none", 64)
    assert [(s.name, s.dtype, s.shape) for s in layout.segments] == [
        ("gate_up_proj", "bfloat16", (100, 30)),
        ("down_proj", "bfloat16", (15, 100)),
    ]
    assert layout.group == 0


def test_group_that_does_not_divide_is_refused_naming_the_legal_ones() -> None:
    model = anatomy(gate_up_proj=(128, 192), down_proj=(192, 64))
    with pytest.raises(
        ModelError, match=r"group of 128 does not divide the 192 columns .* choose 16, 32, 64$"
    ):
        plan_layout(model, dtypes(model), "4", 128)


def test_sides_that_no_group_divides_are_told_to_stay_unquantized() -> None:
    model = anatomy(gate_up_proj=(128, 100), down_proj=(100, 64))
    with pytest.raises(ModelError, match="use --bits none"):
        plan_layout(model, dtypes(model), "4", 64)


@pytest.mark.parametrize("bits,per_byte", [("4", 2), ("3", 8), ("2", 4)])
def test_rows_that_do_not_fill_bytes_are_refused(bits: str, per_byte: int) -> None:
    model = anatomy(gate_up_proj=(129, 64), down_proj=(64, 64))
    with pytest.raises(ModelError, match=f"129 rows, and {bits} bits need a multiple of {per_byte}"):
        plan_layout(model, dtypes(model), bits, 64)


def blob(bits: str, **tensors: torch.Tensor) -> tuple[Any, np.ndarray[Any, np.dtype[np.uint8]]]:
    model = anatomy(**{name: tuple(tensor.shape) for name, tensor in tensors.items()})
    layout = plan_layout(model, dtypes(model), bits, 64)
    written = np.full(layout.stride, 255, np.uint8)
    write_blob(written, tensors, layout, is_transposed=False, fast=True)
    return layout, written


@pytest.mark.parametrize("bits", ["none", "4", "3"])
def test_bytes_between_and_behind_segments_are_zero(bits: str) -> None:
    layout, written = blob(bits, gate_up_proj=torch.randn(8, 64), down_proj=torch.randn(64, 64))
    for segment in layout.segments:
        written[segment.offset : segment.offset + segment.num_bytes] = 0
    assert written.size % BLOB_ALIGNMENT == 0 and not written.any()


def test_same_tensors_give_the_same_bytes() -> None:
    up, down = torch.randn(16, 64), torch.randn(64, 64)
    first, second = blob("3", gate_up_proj=up, down_proj=down), blob("3", gate_up_proj=up, down_proj=down)
    assert np.array_equal(first[1], second[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    up = torch.randn(16, 64)
    up[3, 7] = bad
    with pytest.raises(ModelError, match="cannot be quantized"):
        blob("4", gate_up_proj=up, down_proj=torch.randn(64, 64))


def test_weights_far_from_zero_in_a_narrow_band_are_refused() -> None:
    narrow = 20 + 2e-4 * torch.rand(16, 64)
    with pytest.raises(ModelError, match="use --bits none"):
        blob("4", gate_up_proj=narrow, down_proj=torch.randn(64, 64))


def test_equal_weights_survive_quantization() -> None:
    layout, written = blob("4", gate_up_proj=torch.zeros(16, 64), down_proj=torch.zeros(64, 64))
    scale = layout.segment("gate_up_proj.scale")
    assert np.isfinite(written[scale.offset : scale.offset + scale.num_bytes].view(np.float16)).all()
