"""Decode kernels: few tokens, so that every row reads its expert's bytes once, at memory's speed.

One program makes a tile of one row's outputs. Nothing is shared between programs: no atomics, no
split along K. Shapes and matrices as in compute.kernels.triton_tiles.
"""

import triton
import triton.language as tl

from compute.kernels.triton_epilogue import store_gated, store_rows, weigh
from compute.kernels.triton_tiles import (
    BITS,
    COLUMNS,
    IS_EVEN,
    LANE,
    PARTS,
    ROWS,
    add_bias,
    blob_at,
    load_masked,
    load_weights,
    stack,
)
from compute.kernels.triton_words import multiply_codes

#: Arguments whose alignment must not choose another compilation, and with it other bits.
_INDICES = ["addresses_ptr", "places_ptr", "weights_ptr"]


@triton.jit
def multiply_weights(
    x_ptr: tl.tensor, blob: tl.tensor, row: tl.tensor, chunk: tl.tensor, X: tl.constexpr
) -> tl.tensor:
    """[B, C, P]: unquantized weights times x, summed over each chunk."""
    column = chunk[:, None] * X[LANE] + tl.arange(0, X[LANE])[None, :]
    x = load_masked(x_ptr + column, column < X[COLUMNS], X[IS_EVEN]).to(tl.float32)
    weights = load_weights(blob, row, column, X)
    NUM_PARTS: tl.constexpr = X[PARTS]
    parts: tl.tuple = ()
    for PART in tl.static_range(NUM_PARTS):
        parts = parts + (tl.sum(weights[PART] * x[None, :, :], axis=2),)  # noqa: RUF005 - triton 3.6 knows no star
    return stack(parts, X[PARTS])


@triton.jit
def multiply_row(
    x_ptr: tl.tensor, blob: tl.tensor, row: tl.tensor, CHUNKS: tl.constexpr, X: tl.constexpr
) -> tl.tensor:
    """float32 [B, P, 1]: rows of bytes `row` [B] of a matrix times x [COLUMNS], and their bias."""
    NUM_PARTS: tl.constexpr = X[PARTS]
    sums = tl.zeros([row.shape[0], CHUNKS, NUM_PARTS], tl.float32)
    for first_chunk in range(0, X[COLUMNS] // X[LANE], CHUNKS):
        chunk = first_chunk + tl.arange(0, CHUNKS)
        if X[BITS] == 0:
            sums += multiply_weights(x_ptr, blob, row, chunk, X)
        else:
            sums += multiply_codes(x_ptr, blob, row, chunk, X)
    return add_bias(tl.sum(sums, axis=1)[:, :, None], blob, row, X)


@triton.jit(do_not_specialize_on_alignment=_INDICES)
def decode_up(
    addresses_ptr: tl.tensor, places_ptr: tl.tensor, x_ptr: tl.tensor, out_ptr: tl.tensor,
    TOP_K: tl.constexpr, B: tl.constexpr, CHUNKS: tl.constexpr, X: tl.constexpr, GATE: tl.constexpr,
) -> None:  # fmt: skip
    """Row i of out: expert addresses[i] reads token places[i] // TOP_K of x. Grid (rows, tiles)."""
    i = tl.program_id(0)
    address, blob = blob_at(addresses_ptr, i)
    if address > 0:
        first_row = tl.program_id(1) * B
        x_row = tl.load(places_ptr + i) // TOP_K
        values = multiply_row(x_ptr + x_row * X[COLUMNS], blob, first_row + tl.arange(0, B), CHUNKS, X)
        out_row = i.to(tl.int64) + tl.arange(0, 1)
        store_gated(values, out_ptr, first_row, out_row, out_row >= 0, X, GATE)


@triton.jit(do_not_specialize_on_alignment=_INDICES)
def decode_down(
    addresses_ptr: tl.tensor, places_ptr: tl.tensor, weights_ptr: tl.tensor, x_ptr: tl.tensor,
    out_ptr: tl.tensor,
    B: tl.constexpr, CHUNKS: tl.constexpr, X: tl.constexpr, IS_WEIGHTED: tl.constexpr,
) -> None:  # fmt: skip
    """Row places[i] of out: expert addresses[i] times row i of x, times weights[places[i]].

    Not IS_WEIGHTED: row i of out, without the weight. Grid (rows, tiles).
    """
    i = tl.program_id(0)
    address, blob = blob_at(addresses_ptr, i)
    if address > 0:
        first_row = tl.program_id(1) * B
        out_row = i.to(tl.int64) + tl.arange(0, 1)
        x_row = i.to(tl.int64) * X[COLUMNS]
        values = multiply_row(x_ptr + x_row, blob, first_row + tl.arange(0, B), CHUNKS, X)
        if IS_WEIGHTED:
            out_row = tl.load(places_ptr + out_row)
            values = weigh(values, tl.load(weights_ptr + out_row), x_ptr.dtype.element_ty)
        store_rows(values, out_ptr, first_row, out_row, out_row >= 0, X[ROWS] // X[PARTS], X[ROWS])
