"""The reference kernel: torch alone, the oracle of every other kernel.

Unquantized parameters are views into the blob. Quantized ones are unpacked into scratch memory,
allocated once for a dtype, in the rows' dtype, to the bits that HQQ's own dequantize gives.
One instance serves one thread at a time.
"""

from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import nn
from torch.nn import functional

from protocol.blob import CODE_PLANES, BlobLayout, Segment


class _Experts(Protocol):
    """What transformers' experts interface gives a module."""

    has_gate: bool
    has_bias: bool
    is_transposed: bool

    def _apply_gate(self, gate_up_out: torch.Tensor) -> torch.Tensor: ...
    def act_fn(self, hidden: torch.Tensor) -> torch.Tensor: ...
    def post_expert_norm(self, hidden: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class _Packed:
    """A quantized matrix [N, K]: its planes with their widths in bits, its scale and its zero."""

    planes: tuple[tuple[Segment, int], ...]
    scale: Segment
    zero: Segment
    shape: tuple[int, int]


class _Scratch:
    """Memory for one unpacked matrix at a time, in one dtype on one device."""

    def __init__(self, matrices: list[_Packed], dtype: torch.dtype, device: torch.device) -> None:
        size = max(rows * columns for rows, columns in (matrix.shape for matrix in matrices))
        num_groups = max(matrix.scale.num_bytes // 2 for matrix in matrices)
        with torch.inference_mode(False):
            self.codes = torch.empty(size, dtype=torch.uint8, device=device)
            self.plane = torch.empty(size, dtype=torch.uint8, device=device)
            self.matrix = torch.empty(size, dtype=dtype, device=device)
            self.scale = torch.empty(num_groups, dtype=dtype, device=device)
            self.zero = torch.empty(num_groups, dtype=dtype, device=device)
            self.shifts = {
                w: torch.arange(8 - w, -1, -w, dtype=torch.uint8, device=device) for w in (1, 2, 4, 8)
            }


class ReferenceKernel:
    """Runs any expert of one layout."""

    name = "reference"

    def __init__(self, layout: BlobLayout) -> None:
        self._segments = {segment.name: segment for segment in layout.segments}
        self._packed = {
            name.removesuffix(".scale"): _packed(layout, name.removesuffix(".scale"))
            for name in self._segments
            if name.endswith(".scale")
        }
        self._scratch: dict[tuple[torch.dtype, torch.device], _Scratch] = {}

    def __call__(self, module: nn.Module, blob: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """[n, H] from `rows` [n, H]; see `ExpertKernel`."""
        experts = cast(_Experts, module)
        if experts.has_gate:
            inner = experts._apply_gate(self._project(experts, blob, "gate_up_proj", rows))
        else:
            inner = experts.act_fn(self._project(experts, blob, "up_proj", rows))
        out = self._project(experts, blob, "down_proj", inner)
        has_norm = getattr(experts, "has_post_expert_norm", False)  # unknown to transformers before 5.18
        return experts.post_expert_norm(out) if has_norm else out

    def weight(self, blob: torch.Tensor, name: str, dtype: torch.dtype) -> torch.Tensor:
        """The parameter `name` in `dtype`: as the module holds it, or [N, K] when it is quantized.

        Valid until the next call: quantized matrices share one scratch memory.
        """
        packed = self._packed.get(name)
        if packed is None:
            return _view(blob, self._segments[name]).to(dtype)
        scratch = self._scratch.get((dtype, blob.device))
        if scratch is None:
            scratch = _Scratch(list(self._packed.values()), dtype, blob.device)
            self._scratch[dtype, blob.device] = scratch
        return _dequantize(blob, packed, scratch)

    def _project(self, experts: _Experts, blob: torch.Tensor, name: str, rows: torch.Tensor) -> torch.Tensor:
        weight = self.weight(blob, name, rows.dtype)
        if experts.is_transposed and name not in self._packed:
            out = rows @ weight
        else:
            out = functional.linear(rows, weight)
        if experts.has_bias:
            out.add_(self.weight(blob, name + "_bias", rows.dtype))
        return out


def _packed(layout: BlobLayout, name: str) -> _Packed:
    planes = tuple((layout.segment(name + end), width) for end, width in CODE_PLANES[layout.bits])
    first, width = planes[0]
    shape = (first.shape[0] * 8 // width, first.shape[1])
    return _Packed(planes, layout.segment(name + ".scale"), layout.segment(name + ".zero"), shape)


def _view(blob: torch.Tensor, segment: Segment) -> torch.Tensor:
    """The segment as a tensor that shares the blob's memory."""
    flat = blob[segment.offset : segment.offset + segment.num_bytes]
    return flat.view(getattr(torch, segment.dtype)).view(segment.shape)


def _dequantize(blob: torch.Tensor, packed: _Packed, scratch: _Scratch) -> torch.Tensor:
    """W = (q - zero) * scale, [N, K], each step rounded to the scratch's dtype as HQQ does."""
    rows, columns = packed.shape
    num_groups = packed.scale.shape[1]
    scale = scratch.scale[: rows * num_groups].view(rows, num_groups, 1)
    zero = scratch.zero[: rows * num_groups].view(rows, num_groups, 1)
    scale.copy_(_view(blob, packed.scale).unsqueeze(-1))
    zero.copy_(_view(blob, packed.zero).unsqueeze(-1))
    matrix = scratch.matrix[: rows * columns].view(rows, columns)
    matrix.copy_(_unpack(blob, packed, scratch))
    matrix.view(rows, num_groups, columns // num_groups).sub_(zero).mul_(scale)
    return matrix


def _unpack(blob: torch.Tensor, packed: _Packed, scratch: _Scratch) -> torch.Tensor:
    """uint8 codes [N, K]."""
    (segment, width), *lower = packed.planes
    if width == 8:
        return _view(blob, segment)
    codes = _unpack_plane(blob, segment, width, scratch.codes, scratch)
    for segment, width in lower:
        plane = _unpack_plane(blob, segment, width, scratch.plane, scratch)
        codes.bitwise_left_shift_(width).bitwise_or_(plane)
    return codes


def _unpack_plane(
    blob: torch.Tensor, segment: Segment, width: int, into: torch.Tensor, scratch: _Scratch
) -> torch.Tensor:
    """uint8 [N, K], `width` bits each, written into `into`."""
    packed_rows, columns = segment.shape
    per_byte = 8 // width
    parts = into[: per_byte * packed_rows * columns].view(per_byte, packed_rows, columns)
    torch.bitwise_right_shift(_view(blob, segment), scratch.shifts[width].view(-1, 1, 1), out=parts)
    return parts.bitwise_and_(2**width - 1).view(-1, columns)
