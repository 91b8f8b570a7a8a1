"""Quantization: one expert's tensors become the bytes of one blob, after a layout planned once.

`none` keeps the checkpoint's bytes. 8, 4, 3 and 2 bits are HQQ's half-quadratic quantization:
W = (q - zero) * scale, one float16 scale and zero for each group of K, re-packed without loss.
Knows tensors and bytes; no files.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from loader.anatomy import Anatomy
from protocol.blob import CODE_PLANES, GROUPS, BlobLayout
from protocol.errors import ModelError

_Part = tuple[str, str, tuple[int, ...]]


def plan_layout(anatomy: Anatomy, dtypes: Mapping[str, torch.dtype], bits: str, group: int) -> BlobLayout:
    """The blob layout of every expert of a model. Raises ModelError when a side does not divide."""
    parts: list[_Part] = []
    for parameter in anatomy.parameters:
        if bits == "none" or not parameter.is_matrix:
            parts.append(
                (parameter.name, str(dtypes[parameter.name]).removeprefix("torch."), parameter.shape)
            )
        else:
            rows, columns = reversed(parameter.shape) if anatomy.is_transposed else parameter.shape
            _check_sides(anatomy, parameter.name, rows, columns, bits, group)
            parts += _quantized_parts(parameter.name, rows, columns, bits, group)
    return BlobLayout.pack(bits, 0 if bits == "none" else group, parts)


def write_blob(
    blob: npt.NDArray[np.uint8],
    tensors: Mapping[str, torch.Tensor],
    layout: BlobLayout,
    *,
    is_transposed: bool,
    fast: bool,
) -> None:
    """Fill `blob` [stride] with one expert's `tensors`; what no segment covers is zero.

    `fast` rounds plainly instead of optimising zeros. Raises ModelError for weights that float16
    scales and zeros cannot hold (not finite, or a narrow band far from zero).
    """
    blob[:] = 0
    for name, tensor in tensors.items():
        if layout.bits == "none" or tensor.ndim != 2:
            _put(blob, layout, name, tensor)
            continue
        matrix = tensor.t() if is_transposed else tensor
        codes, scale, zero = quantize(matrix, layout.bits, layout.group, fast=fast)
        if not bool(torch.isfinite(scale).all() and torch.isfinite(zero).all()):
            raise ModelError(f"{name} of an expert has weights that cannot be quantized: use --bits none")
        for end, plane in pack_codes(codes, layout.bits).items():
            _put(blob, layout, name + end, plane)
        _put(blob, layout, name + ".scale", scale)
        _put(blob, layout, name + ".zero", zero)


def quantize(
    matrix: torch.Tensor, bits: str, group: int, *, fast: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """codes uint8 [N, K], scale and zero float16 [N, K/group] of a matrix [N, K], by HQQ on the CPU."""
    from hqq.core.quantize import Quantizer

    rows, columns = matrix.shape
    codes, meta = Quantizer.quantize(
        matrix.float().contiguous(),
        nbits=int(bits),
        group_size=group,
        optimize=not fast,
        axis=1,
        bitpack=False,
        device="cpu",
    )
    groups = (rows, columns // group)
    scale, zero = meta["scale"].view(groups).half(), meta["zero"].view(groups).half()
    return codes.view(rows, columns).to(torch.uint8), scale, zero


def pack_codes(codes: torch.Tensor, bits: str) -> dict[str, torch.Tensor]:
    """Planes by the end of their segment's name; each [N * plane bits / 8, K]."""
    planes: dict[str, torch.Tensor] = {}
    rest = int(bits)
    for end, width in CODE_PLANES[bits]:
        rest -= width
        planes[end] = _pack_plane((codes >> rest) & (2**width - 1), width)
    return planes


def _pack_plane(codes: torch.Tensor, width: int) -> torch.Tensor:
    per_byte = 8 // width
    packed = torch.zeros_like(codes[: codes.shape[0] // per_byte])
    for part, shift in zip(codes.chunk(per_byte), range(8 - width, -1, -width)):
        packed |= part << shift
    return packed


def _quantized_parts(name: str, rows: int, columns: int, bits: str, group: int) -> list[_Part]:
    planes = [(name + end, "uint8", (rows * width // 8, columns)) for end, width in CODE_PLANES[bits]]
    scales = (rows, columns // group)
    return [*planes, (name + ".scale", "float16", scales), (name + ".zero", "float16", scales)]


def _check_sides(anatomy: Anatomy, name: str, rows: int, columns: int, bits: str, group: int) -> None:
    if columns % group:
        legal = legal_groups(anatomy)
        choose = f"choose {', '.join(map(str, legal))}" if legal else "no group does, use --bits none"
        raise ModelError(f"a group of {group} does not divide the {columns} columns of {name}: {choose}")
    per_byte = 8 // min(width for _, width in CODE_PLANES[bits])
    if rows % per_byte:
        raise ModelError(
            f"{name} has {rows} rows, and {bits} bits need a multiple of {per_byte}: choose other --bits"
        )


def legal_groups(anatomy: Anatomy) -> Sequence[int]:
    """The groups that divide every matrix of an expert."""
    inner = 0 if anatomy.is_transposed else 1
    columns = [parameter.shape[inner] for parameter in anatomy.parameters if parameter.is_matrix]
    return [group for group in GROUPS if all(side % group == 0 for side in columns)]


def _put(blob: npt.NDArray[np.uint8], layout: BlobLayout, name: str, tensor: torch.Tensor) -> None:
    segment = layout.segment(name)
    assert tuple(tensor.shape) == segment.shape and str(tensor.dtype) == f"torch.{segment.dtype}", segment
    into = blob[segment.offset : segment.offset + segment.num_bytes]
    into[:] = tensor.contiguous().view(-1).view(torch.uint8).numpy()
