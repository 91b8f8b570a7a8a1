"""Words: packed codes times one row of activations, four bytes and 17 instructions for eight codes.

A code is not unpacked: masked where it stands in its word, its bits are a subnormal float, whole
numbers of 2^-149, and activations that are 2^80 times as large make up for it. Exact; GPUs
multiply subnormal numbers as fast as others. Names and shapes as in compute.kernels.triton_tiles.
"""

import triton
import triton.language as tl

from compute.kernels.triton_tiles import (
    BITS,
    COLUMNS,
    GROUP,
    IS_EVEN,
    LANE,
    LOW_PLANE,
    PARTS,
    PLANE,
    ROWS,
    SCALE,
    ZERO,
    load_masked,
    stack,
)


@triton.jit
def load_quads(x_ptr: tl.tensor, word: tl.tensor, mask: tl.tensor, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """(x0, x1, x2, x3), each float32 [C, W]: what the four bytes of a word are multiplied by.

    Tensors of fewer elements than threads are loaded where they are used, without a detour through
    shared memory and its barriers: hence four numbers of 16 bits as one of 64.
    """
    TYPE: tl.constexpr = x_ptr.dtype.element_ty
    if TYPE.primitive_bitwidth == 16:
        quads = load_masked(x_ptr.to(tl.pointer_type(tl.int64)) + word, mask, EVEN)
        x0 = quads.to(tl.int16).to(TYPE, bitcast=True)
        x1 = (quads >> 16).to(tl.int16).to(TYPE, bitcast=True)
        x2 = (quads >> 32).to(tl.int16).to(TYPE, bitcast=True)
        x3 = (quads >> 48).to(tl.int16).to(TYPE, bitcast=True)
    else:
        x0 = load_masked(x_ptr + 4 * word, mask, EVEN)
        x1 = load_masked(x_ptr + 4 * word + 1, mask, EVEN)
        x2 = load_masked(x_ptr + 4 * word + 2, mask, EVEN)
        x3 = load_masked(x_ptr + 4 * word + 3, mask, EVEN)
    return x0.to(tl.float32), x1.to(tl.float32), x2.to(tl.float32), x3.to(tl.float32)


@triton.jit
def enlarge(x):  # type: ignore[no-untyped-def]
    """By 2^80; less by 2^8 where a byte is the higher of its half word, and its codes so much larger."""
    return x[0] * 2.0**80, x[1] * 2.0**72, x[2] * 2.0**80, x[3] * 2.0**72


@triton.jit
def as_tiny(words: tl.tensor, MASK: tl.constexpr) -> tl.tensor:
    """float32: the masked bits, as a whole number below 2^23, times 2^-149."""
    return (words & MASK).to(tl.float32, bitcast=True)


@triton.jit
def sum_codes(words: tl.tensor, large_x, POSITION: tl.constexpr, WIDTH: tl.constexpr) -> tl.tensor:  # type: ignore[no-untyped-def]
    """[B, C]: the codes of WIDTH bits at bit POSITION of each byte, times x, summed over each chunk."""
    MASK: tl.constexpr = ((1 << WIDTH) - 1) << POSITION
    upper = words >> 16
    total = as_tiny(words, MASK) * large_x[0][None, :, :]
    total += as_tiny(words, MASK << 8) * large_x[1][None, :, :]
    total += as_tiny(upper, MASK) * large_x[2][None, :, :]
    total += as_tiny(upper, MASK << 8) * large_x[3][None, :, :]
    return tl.sum(total, axis=2) * (2.0**69 / (1 << POSITION))


@triton.jit
def sum_part(words, large_x, PART: tl.constexpr, NUM_BITS: tl.constexpr) -> tl.tensor:  # type: ignore[no-untyped-def]
    """[B, C]: one part's codes times x; see compute.kernels.triton_tiles.code for where they are."""
    if NUM_BITS == 8:
        sums = sum_codes(words[PART % 2], large_x, 0, 8)
    elif NUM_BITS == 4:
        sums = sum_codes(words[0], large_x, 4 - 4 * PART, 4)
    elif NUM_BITS == 2:
        sums = sum_codes(words[0], large_x, 6 - 2 * PART, 2)
    else:
        sums = 2 * sum_codes(words[PART % 2], large_x, 6 - 2 * (PART // 2), 2)
        sums += sum_codes(words[2], large_x, 7 - PART, 1)
    return sums


@triton.jit
def load_words(blob: tl.tensor, row: tl.tensor, word: tl.tensor, X: tl.constexpr):  # type: ignore[no-untyped-def]
    """(first, second, low), each int32 [B, C, W]; as load_codes, four bytes of four columns at once."""
    PART_ROWS: tl.constexpr = X[ROWS] // X[PARTS]
    NUM_WORDS: tl.constexpr = X[COLUMNS] // 4
    offset = row[:, None, None] * NUM_WORDS + word[None, :, :]
    mask = (row < PART_ROWS)[:, None, None] & (word < NUM_WORDS)[None, :, :]
    plane = (blob + X[PLANE]).to(tl.pointer_type(tl.int32)) + offset
    first = load_masked(plane, mask, X[IS_EVEN])
    second = first
    low = first
    if X[BITS] == 3 or (X[BITS] == 8 and X[PARTS] == 2):
        second = load_masked(plane + PART_ROWS * NUM_WORDS, mask, X[IS_EVEN])
    if X[BITS] == 3:
        low_plane = (blob + X[LOW_PLANE]).to(tl.pointer_type(tl.int32)) + offset
        low = load_masked(low_plane, mask, X[IS_EVEN])
    return first, second, low


@triton.jit
def multiply_codes(
    x_ptr: tl.tensor, blob: tl.tensor, row: tl.tensor, chunk: tl.tensor, X: tl.constexpr
) -> tl.tensor:
    """[B, C, P]: s * (sum q x - z * sum x) of each chunk, for rows of bytes `row` [B] and x [COLUMNS]."""
    PART_ROWS: tl.constexpr = X[ROWS] // X[PARTS]
    NUM_GROUPS: tl.constexpr = X[COLUMNS] // X[GROUP]
    word = chunk[:, None] * (X[LANE] // 4) + tl.arange(0, X[LANE] // 4)[None, :]
    words = load_words(blob, row, word, X)
    x = load_quads(x_ptr, word, word < X[COLUMNS] // 4, X[IS_EVEN])
    # For every row alike, and so in the layout of the words: no detour here either.
    x_all = tl.broadcast_to(((x[0] + x[1]) + (x[2] + x[3]))[None, :, :], words[0].shape)
    x_sum = tl.sum(x_all, axis=2)
    large_x = enlarge(x)
    at = row[:, None] * NUM_GROUPS + (chunk * X[LANE] // X[GROUP])[None, :]
    is_group = (row < PART_ROWS)[:, None] & (chunk < X[COLUMNS] // X[LANE])[None, :]
    scales = (blob + X[SCALE]).to(tl.pointer_type(tl.float16)) + at
    zeros = (blob + X[ZERO]).to(tl.pointer_type(tl.float16)) + at
    NUM_PARTS: tl.constexpr = X[PARTS]
    parts: tl.tuple = ()
    for PART in tl.static_range(NUM_PARTS):
        scale = load_masked(scales + PART * PART_ROWS * NUM_GROUPS, is_group, X[IS_EVEN]).to(tl.float32)
        zero = load_masked(zeros + PART * PART_ROWS * NUM_GROUPS, is_group, X[IS_EVEN]).to(tl.float32)
        parts = parts + (scale * (sum_part(words, large_x, PART, X[BITS]) - zero * x_sum),)  # noqa: RUF005 - triton 3.6 knows no star
    return stack(parts, X[PARTS])
