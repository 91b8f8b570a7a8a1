"""Tiles: where a matrix lies in a blob, how its bytes are loaded, and what they are worth.

What the decode and the block kernels share. A matrix is a tuple of compile-time constants, indexed
by the names below. Shapes in comments: B rows of bytes, C chunks of L columns ("lane"), P parts,
M rows of activations. Imports triton: only on CUDA's way.
"""

import triton
import triton.language as tl

#: Places in the tuple that describes a matrix; see compute.kernels.triton_plan.Matrix.
FIELDS = (
    "bits", "group", "rows", "columns", "parts", "lane", "plane", "low_plane", "scale", "zero",
    "bias", "dtype", "bias_dtype", "is_transposed", "is_even",
)  # fmt: skip
BITS = tl.constexpr(0)
GROUP = tl.constexpr(1)
ROWS = tl.constexpr(2)
COLUMNS = tl.constexpr(3)
PARTS = tl.constexpr(4)
LANE = tl.constexpr(5)
PLANE = tl.constexpr(6)
LOW_PLANE = tl.constexpr(7)
SCALE = tl.constexpr(8)
ZERO = tl.constexpr(9)
BIAS = tl.constexpr(10)
DTYPE = tl.constexpr(11)
BIAS_DTYPE = tl.constexpr(12)
IS_TRANSPOSED = tl.constexpr(13)
IS_EVEN = tl.constexpr(14)


@triton.jit
def blob_at(addresses_ptr: tl.tensor, i: tl.tensor):  # type: ignore[no-untyped-def]
    """Address i as a number (0 or less: there is no expert), and as a pointer that is aligned."""
    address = tl.load(addresses_ptr + i)
    return address, tl.multiple_of(address.to(tl.pointer_type(tl.uint8)), 128)


@triton.jit
def load_masked(pointers: tl.tensor, mask: tl.tensor, EVEN: tl.constexpr) -> tl.tensor:
    """Zeros where the mask is not; no mask where nothing lies beyond the matrix."""
    return tl.load(pointers) if EVEN else tl.load(pointers, mask=mask, other=0)


@triton.jit
def load_weights(blob: tl.tensor, row: tl.tensor, column: tl.tensor, X: tl.constexpr):  # type: ignore[no-untyped-def]
    """(first, second), each float32 [B, C, L]: unquantized weights of part 0, and of part 1 if any."""
    PART_ROWS: tl.constexpr = X[ROWS] // X[PARTS]
    ROW_STRIDE: tl.constexpr = 1 if X[IS_TRANSPOSED] else X[COLUMNS]
    COLUMN_STRIDE: tl.constexpr = X[ROWS] if X[IS_TRANSPOSED] else 1
    offset = row[:, None, None] * ROW_STRIDE + column[None, :, :] * COLUMN_STRIDE
    mask = (row < PART_ROWS)[:, None, None] & (column < X[COLUMNS])[None, :, :]
    weights = (blob + X[PLANE]).to(tl.pointer_type(X[DTYPE])) + offset
    first = load_masked(weights, mask, X[IS_EVEN]).to(tl.float32)
    second = first
    if X[PARTS] == 2:
        second = load_masked(weights + PART_ROWS * ROW_STRIDE, mask, X[IS_EVEN]).to(tl.float32)
    return first, second


@triton.jit
def load_codes(blob: tl.tensor, row: tl.tensor, column: tl.tensor, X: tl.constexpr):  # type: ignore[no-untyped-def]
    """(first, second, low), each int32 [B, C, L]: the bytes that all parts' codes are cut from.

    See CODE_PLANES. 8 bits have a byte for each part; the 2-bit plane of 3 bits has two rows of bytes
    for each row of its 1-bit plane.
    """
    PART_ROWS: tl.constexpr = X[ROWS] // X[PARTS]
    offset = row[:, None, None] * X[COLUMNS] + column[None, :, :]
    mask = (row < PART_ROWS)[:, None, None] & (column < X[COLUMNS])[None, :, :]
    plane = blob + X[PLANE] + offset
    first = load_masked(plane, mask, X[IS_EVEN]).to(tl.int32)
    second = first
    low = first
    if X[BITS] == 3 or (X[BITS] == 8 and X[PARTS] == 2):
        second = load_masked(plane + PART_ROWS * X[COLUMNS], mask, X[IS_EVEN]).to(tl.int32)
    if X[BITS] == 3:
        low = load_masked(blob + X[LOW_PLANE] + offset, mask, X[IS_EVEN]).to(tl.int32)
    return first, second, low


@triton.jit
def code(bytes, PART: tl.constexpr, NUM_BITS: tl.constexpr) -> tl.tensor:  # type: ignore[no-untyped-def]
    """int32 [B, C, L]: the codes of matrix rows PART * ROWS / PARTS + row."""
    if NUM_BITS == 8:
        codes = bytes[PART % 2]
    elif NUM_BITS == 4:
        codes = (bytes[0] >> (4 - 4 * PART)) & 15
    elif NUM_BITS == 2:
        codes = (bytes[0] >> (6 - 2 * PART)) & 3
    else:
        high = (bytes[PART % 2] >> (6 - 2 * (PART // 2))) & 3
        codes = (high << 1) | ((bytes[2] >> (7 - PART)) & 1)
    return codes


@triton.jit
def as_float(codes: tl.tensor) -> tl.tensor:
    """Whole numbers below 2^23, exactly: into the mantissa of 2^23, which a subtraction takes away."""
    return (codes | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def stack(parts, NUM_PARTS: tl.constexpr) -> tl.tensor:  # type: ignore[no-untyped-def]
    """[..., P]: P tensors of one shape side by side, in their order, without leaving registers."""
    if NUM_PARTS == 1:
        stacked = tl.expand_dims(parts[0], -1)
    elif NUM_PARTS == 2:
        stacked = tl.join(parts[0], parts[1])
    elif NUM_PARTS == 4:
        stacked = merge(tl.join(tl.join(parts[0], parts[2]), tl.join(parts[1], parts[3])))
    else:
        even = merge(tl.join(tl.join(parts[0], parts[4]), tl.join(parts[2], parts[6])))
        odd = merge(tl.join(tl.join(parts[1], parts[5]), tl.join(parts[3], parts[7])))
        stacked = merge(tl.join(even, odd))
    return stacked


@triton.jit
def merge(x: tl.tensor) -> tl.tensor:
    """The last two dimensions, of 3 or more, become one."""
    if len(x.shape) == 4:
        merged = x.reshape(x.shape[0], x.shape[1], x.shape[2] * x.shape[3])
    else:
        merged = x.reshape(x.shape[0], x.shape[1], x.shape[2], x.shape[3] * x.shape[4])
    return merged


@triton.jit
def add_bias(values: tl.tensor, blob: tl.tensor, row: tl.tensor, X: tl.constexpr) -> tl.tensor:
    """values [B, P, M] and the bias of each of their rows."""
    if X[BIAS] >= 0:
        PART_ROWS: tl.constexpr = X[ROWS] // X[PARTS]
        NUM_PARTS: tl.constexpr = X[PARTS]
        part = tl.arange(0, NUM_PARTS)[None, :]
        bias = (blob + X[BIAS]).to(tl.pointer_type(X[BIAS_DTYPE])) + part * PART_ROWS + row[:, None]
        is_row = (row < PART_ROWS)[:, None] & (part >= 0)
        values += tl.load(bias, mask=is_row, other=0).to(tl.float32)[:, :, None]
    return values
