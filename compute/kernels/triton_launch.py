"""Launches: matrix, tile, gate and rows become the arguments of one of the four Triton kernels.

Owns the names of compile-time constants, so that what is compiled ahead in a check is what is
launched. Imports triton.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton.language as tl
from torch import Tensor

from compute.kernels.triton_blocks import block_down, block_up
from compute.kernels.triton_decode import decode_down, decode_up
from compute.kernels.triton_gate import Gate
from compute.kernels.triton_plan import Matrix, Tile
from compute.kernels.triton_tiles import FIELDS

if TYPE_CHECKING:
    from compute.kernels.triton_kernel import Rows

Constants = dict[str, object]

#: The projection is written as it is.
_NO_GATE = ("none", "", 1.0, 0.0, 0.0)

_TYPES = {
    "uint8": tl.uint8,
    "float32": tl.float32,
    "float16": tl.float16,
    "bfloat16": tl.bfloat16,
}


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel with its constants and compile options."""

    kernel: object
    constants: Constants
    options: dict[str, object]


def up_launch(matrix: Matrix, tile: Tile, gate: Gate | None, top_k: int) -> Launch:
    """The first projection; without a gate it is written as it is."""
    formula = (gate.pairing, gate.activation, gate.alpha, gate.limit, gate.shift) if gate else _NO_GATE
    constants = _constants(matrix, tile) | {"TOP_K": top_k, "GATE": formula}
    return Launch(decode_up if tile.tokens == 1 else block_up, constants, _options(tile))


def down_launch(matrix: Matrix, tile: Tile, *, is_weighted: bool) -> Launch:
    constants = _constants(matrix, tile) | {"IS_WEIGHTED": is_weighted}
    return Launch(decode_down if tile.tokens == 1 else block_down, constants, _options(tile))


def up(matrix: Matrix, tile: Tile, gate: Gate | None, rows: Rows, x: Tensor, out: Tensor, top_k: int) -> None:
    """Rows of out [R, width] from x [T, H]."""
    _start(up_launch(matrix, tile, gate, top_k), matrix, tile, rows, (rows.places, x, out))


def down(matrix: Matrix, tile: Tile, rows: Rows, x: Tensor, weights: Tensor | None, out: Tensor) -> None:
    """x [R, I] to places of out [T * K, H], times their weights; without weights to out [R, H]."""
    launch = down_launch(matrix, tile, is_weighted=weights is not None)
    _start(launch, matrix, tile, rows, (rows.places, weights if weights is not None else x, x, out))


def send(columns: list[list[int]], device: torch.device) -> list[Tensor]:
    """int64 tensors on `device`, in one copy that the host does not wait for."""
    flat = torch.tensor([value for column in columns for value in column], pin_memory=device.type == "cuda")
    sent = flat.to(device, non_blocking=True)
    return list(torch.split(sent, [len(column) for column in columns]))


def _start(launch: Launch, matrix: Matrix, tile: Tile, rows: Rows, tensors: tuple[Tensor, ...]) -> None:
    num_rows_or_blocks = len(rows.addresses)
    num_tiles = -(-matrix.part_rows // tile.part_rows)
    cut = () if rows.starts is None else (rows.starts, rows.counts)
    kernel = launch.kernel[(num_rows_or_blocks, num_tiles)]  # type: ignore[index]
    kernel(rows.addresses, *cut, *tensors, **launch.constants, **launch.options)


def _constants(matrix: Matrix, tile: Tile) -> Constants:
    values = (getattr(tile if name == "is_even" else matrix, name) for name in FIELDS)
    described = tuple(_TYPES.get(value, value) if isinstance(value, str) else value for value in values)
    constants: Constants = {"X": described, "B": tile.part_rows, "CHUNKS": tile.chunks}
    return constants if tile.tokens == 1 else constants | {"M": tile.tokens}


def _options(tile: Tile) -> dict[str, object]:
    # Products and sums are fused: half the instructions, and one rounding less.
    return {"num_warps": tile.num_warps, "num_stages": tile.num_stages, "enable_fp_fusion": True}
