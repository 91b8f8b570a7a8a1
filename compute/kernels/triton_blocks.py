"""Block kernels: many tokens, so that an expert's weights are unpacked once for a block of its rows.

One program multiplies a tile of weights, dequantized in registers, by a block of one expert's rows
with matrix units. No atomics, no split along K: a row's result depends on its own values alone.
Shapes and matrices as in compute.kernels.triton_tiles.
"""

import triton
import triton.language as tl

from compute.kernels.triton_epilogue import store_gated, store_rows, weigh
from compute.kernels.triton_tiles import (
    BITS,
    COLUMNS,
    GROUP,
    IS_EVEN,
    LANE,
    PARTS,
    ROWS,
    SCALE,
    ZERO,
    add_bias,
    as_float,
    blob_at,
    code,
    load_codes,
    load_masked,
    load_weights,
    stack,
)

#: Arguments whose alignment must not choose another compilation, and with it other bits.
_INDICES = ["addresses_ptr", "starts_ptr", "counts_ptr", "places_ptr", "weights_ptr"]


@triton.jit
def dequantize(blob: tl.tensor, row: tl.tensor, chunk: tl.tensor, column: tl.tensor, X: tl.constexpr):  # type: ignore[no-untyped-def]
    """P times float32 [B, C, L]: (q - z) * s."""
    PART_ROWS: tl.constexpr = X[ROWS] // X[PARTS]
    NUM_GROUPS: tl.constexpr = X[COLUMNS] // X[GROUP]
    at = row[:, None] * NUM_GROUPS + (chunk * X[LANE] // X[GROUP])[None, :]
    is_group = (row < PART_ROWS)[:, None] & (chunk < X[COLUMNS] // X[LANE])[None, :]
    scales = (blob + X[SCALE]).to(tl.pointer_type(tl.float16)) + at
    zeros = (blob + X[ZERO]).to(tl.pointer_type(tl.float16)) + at
    bytes = load_codes(blob, row, column, X)
    NUM_PARTS: tl.constexpr = X[PARTS]
    parts: tl.tuple = ()
    for PART in tl.static_range(NUM_PARTS):
        scale = load_masked(scales + PART * PART_ROWS * NUM_GROUPS, is_group, X[IS_EVEN]).to(tl.float32)
        zero = load_masked(zeros + PART * PART_ROWS * NUM_GROUPS, is_group, X[IS_EVEN]).to(tl.float32)
        codes = as_float(code(bytes, PART, X[BITS]))
        parts = parts + ((codes - zero[:, :, None]) * scale[:, :, None],)  # noqa: RUF005 - triton 3.6 knows no star
    return parts


@triton.jit
def multiply_block(
    x_ptr: tl.tensor, x_row: tl.tensor, is_live: tl.tensor, blob: tl.tensor, row: tl.tensor,
    CHUNKS: tl.constexpr, X: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """float32 [B, P, M]: rows of bytes `row` [B] of a matrix times the live rows x_row [M] of x, and bias."""
    B: tl.constexpr = row.shape[0]
    M: tl.constexpr = x_row.shape[0]
    LANE_WIDTH: tl.constexpr = X[LANE]
    WIDTH: tl.constexpr = CHUNKS * LANE_WIDTH
    NUM_PARTS: tl.constexpr = X[PARTS]
    sums = tl.zeros([B * NUM_PARTS, M], tl.float32)
    for first_chunk in range(0, X[COLUMNS] // X[LANE], CHUNKS):
        chunk = first_chunk + tl.arange(0, CHUNKS)
        column = chunk[:, None] * X[LANE] + tl.arange(0, LANE_WIDTH)[None, :]
        if X[BITS] == 0:
            weights = stack(load_weights(blob, row, column, X), X[PARTS])
        else:
            weights = stack(dequantize(blob, row, chunk, column, X), X[PARTS])
        weights = weights.to(x_ptr.dtype.element_ty)
        weights = weights.permute(0, 3, 1, 2).reshape(B * NUM_PARTS, WIDTH)
        x_column = first_chunk * X[LANE] + tl.arange(0, WIDTH)
        x_mask = is_live[None, :] & (x_column < X[COLUMNS])[:, None]
        x = tl.load(x_ptr + x_row[None, :] * X[COLUMNS] + x_column[:, None], mask=x_mask, other=0)
        sums = tl.dot(weights, x, sums, input_precision="ieee")
    return add_bias(sums.reshape(B, NUM_PARTS, M), blob, row, X)


@triton.jit(do_not_specialize_on_alignment=_INDICES)
def block_up(
    addresses_ptr: tl.tensor, starts_ptr: tl.tensor, counts_ptr: tl.tensor, places_ptr: tl.tensor,
    x_ptr: tl.tensor, out_ptr: tl.tensor,
    TOP_K: tl.constexpr, B: tl.constexpr, M: tl.constexpr, CHUNKS: tl.constexpr, X: tl.constexpr,
    GATE: tl.constexpr,
) -> None:  # fmt: skip
    """Block b is rows starts[b] .. starts[b] + counts[b] of out: expert addresses[b] reads tokens
    places[row] // TOP_K of x. Grid (blocks, tiles)."""
    b = tl.program_id(0)
    address, blob = blob_at(addresses_ptr, b)
    if address > 0:
        first_row = tl.program_id(1) * B
        out_row = tl.load(starts_ptr + b) + tl.arange(0, M)
        is_live = tl.arange(0, M) < tl.load(counts_ptr + b)
        x_row = tl.load(places_ptr + out_row, mask=is_live, other=0) // TOP_K
        values = multiply_block(x_ptr, x_row, is_live, blob, first_row + tl.arange(0, B), CHUNKS, X)
        store_gated(values, out_ptr, first_row, out_row, is_live, X, GATE)


@triton.jit(do_not_specialize_on_alignment=_INDICES)
def block_down(
    addresses_ptr: tl.tensor, starts_ptr: tl.tensor, counts_ptr: tl.tensor, places_ptr: tl.tensor,
    weights_ptr: tl.tensor, x_ptr: tl.tensor, out_ptr: tl.tensor,
    B: tl.constexpr, M: tl.constexpr, CHUNKS: tl.constexpr, X: tl.constexpr, IS_WEIGHTED: tl.constexpr,
) -> None:  # fmt: skip
    """Block b is rows starts[b] .. starts[b] + counts[b] of x: by expert addresses[b], times their weights,
    to rows `places` of out; not IS_WEIGHTED: to the same rows, without. Grid (blocks, tiles)."""
    b = tl.program_id(0)
    address, blob = blob_at(addresses_ptr, b)
    if address > 0:
        first_row = tl.program_id(1) * B
        x_row = tl.load(starts_ptr + b) + tl.arange(0, M)
        is_live = tl.arange(0, M) < tl.load(counts_ptr + b)
        values = multiply_block(x_ptr, x_row, is_live, blob, first_row + tl.arange(0, B), CHUNKS, X)
        out_row = x_row
        if IS_WEIGHTED:
            out_row = tl.load(places_ptr + x_row, mask=is_live, other=0)
            weight = tl.load(weights_ptr + out_row, mask=is_live, other=0)
            values = weigh(values, weight, x_ptr.dtype.element_ty)
        store_rows(values, out_ptr, first_row, out_row, is_live, X[ROWS] // X[PARTS], X[ROWS])
