"""Epilogue: finished projections go through the gate and to their rows.

Formulas are those of compute.kernels.triton_gate; the gate is a tuple of compile-time constants.
Shapes as in compute.kernels.triton_tiles.
"""

import triton
import triton.language as tl

from compute.kernels.triton_tiles import PARTS, ROWS

#: Places in the tuple that describes a gate: pairing, activation ("" for none), alpha, limit, shift.
PAIRING = tl.constexpr(0)
ACTIVATION = tl.constexpr(1)
ALPHA = tl.constexpr(2)
LIMIT = tl.constexpr(3)
SHIFT = tl.constexpr(4)


@triton.jit
def activate(x: tl.tensor, NAME: tl.constexpr, FACTOR: tl.constexpr) -> tl.tensor:
    if NAME == "silu":
        x = x * tl.sigmoid(x * FACTOR)
    elif NAME == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif NAME == "gelu_tanh":
        # tanh(y) = 2 sigmoid(2 y) - 1
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif NAME != "":
        x = tl.maximum(x, 0.0)
        if NAME == "relu2":
            x = x * x
    return x


@triton.jit
def clamp_and_multiply(pairs: tl.tensor, GATE: tl.constexpr) -> tl.tensor:
    """pairs [..., 2] of gate and up."""
    NAME: tl.constexpr = GATE[ACTIVATION]
    gate, up = tl.split(pairs)
    if GATE[LIMIT] > 0:
        gate = tl.minimum(gate, GATE[LIMIT])
        up = tl.minimum(tl.maximum(up, -GATE[LIMIT]), GATE[LIMIT])
    return activate(gate, NAME, GATE[ALPHA]) * (up + GATE[SHIFT])


@triton.jit
def store_gated(
    values: tl.tensor, out_ptr: tl.tensor, first_row: tl.tensor, out_row: tl.tensor, is_live: tl.tensor,
    X: tl.constexpr, GATE: tl.constexpr,
) -> None:  # fmt: skip
    """values [B, P, M] of matrix X through the gate into rows out_row [M] of out, if they are live."""
    B: tl.constexpr = values.shape[0]
    M: tl.constexpr = values.shape[2]
    NUM_PARTS: tl.constexpr = X[PARTS]
    PART_ROWS: tl.constexpr = X[ROWS] // NUM_PARTS
    if GATE[PAIRING] == "halves":
        pairs = values.reshape(B, 2, NUM_PARTS // 2, M).permute(0, 2, 3, 1)
        inner = clamp_and_multiply(pairs, GATE)
        store_rows(inner, out_ptr, first_row, out_row, is_live, PART_ROWS, X[ROWS] // 2)
    elif GATE[PAIRING] == "interleaved":
        pairs = values.reshape(B // 2, 2, NUM_PARTS, M).permute(0, 2, 3, 1)
        inner = clamp_and_multiply(pairs, GATE)
        store_rows(inner, out_ptr, first_row // 2, out_row, is_live, PART_ROWS // 2, X[ROWS] // 2)
    else:
        NAME: tl.constexpr = GATE[ACTIVATION]
        values = activate(values, NAME, GATE[ALPHA])
        store_rows(values, out_ptr, first_row, out_row, is_live, PART_ROWS, X[ROWS])


@triton.jit
def store_rows(
    values: tl.tensor, out_ptr: tl.tensor, first_row: tl.tensor, out_row: tl.tensor, is_live: tl.tensor,
    PART_ROWS: tl.constexpr, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    """values [B, P, M] to columns part * PART_ROWS + first_row + b of rows out_row [M], if they are live."""
    row = first_row + tl.arange(0, values.shape[0])
    column = tl.arange(0, values.shape[1])[None, :] * PART_ROWS + row[:, None]
    pointers = out_ptr + out_row[None, None, :] * WIDTH + column[:, :, None]
    mask = (row < PART_ROWS)[:, None, None] & is_live[None, None, :]
    tl.store(pointers, values.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def weigh(values: tl.tensor, weight: tl.tensor, TYPE: tl.constexpr) -> tl.tensor:
    """values [B, P, M], rounded to TYPE as the module's output would be, times the weights [M]."""
    return values.to(TYPE).to(tl.float32) * weight.to(tl.float32)[None, None, :]
