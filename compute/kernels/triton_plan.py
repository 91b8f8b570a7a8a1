"""How a matrix of a blob is cut into tiles: frozen rules, functions of its shape alone.

Pure: no torch, no triton, no device. Nothing here knows the number of slots, which experts are
resident or how many are computed at once, so that no result can depend on it (docs/gpu.md).
"""

from dataclasses import dataclass
from typing import Literal

from protocol.blob import CODE_PLANES, BlobLayout

#: A layer-step of so many tokens or fewer goes row by row ("decode"), others by blocks of rows.
MAX_DECODE_TOKENS = 8
#: Up to so many tokens a block of rows is small, so that experts with few rows waste little.
MAX_SMALL_BLOCK_TOKENS = 128

_LANE = 64
_DECODE_COLUMNS = 256
_DECODE_TILE = 64
_BLOCK_WEIGHTS = 64
_INDEX_LIMIT = 2**31

#: How gate and up lie in an up projection's rows: not at all, one half each, or in turn.
Pairing = Literal["none", "halves", "interleaved"]


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix [rows, columns] of every expert; offsets count from the blob's start, -1 is none.

    `bits` is 0 where the weights are as in the checkpoint, of type `dtype`; then alone the matrix may
    be transposed, [columns, rows] in memory. `parts`: rows that share a byte, a `rows / parts`-th of
    the matrix apart; a row of bytes has one row of each part.
    """

    bits: int
    group: int
    rows: int
    columns: int
    parts: int
    plane: int
    low_plane: int
    scale: int
    zero: int
    bias: int
    dtype: str
    bias_dtype: str
    is_transposed: bool

    @property
    def part_rows(self) -> int:
        return self.rows // self.parts

    @property
    def lane(self) -> int:
        """Columns that surely share a scale and lie side by side: a power of two, at most 64."""
        limit = min(self.group, _LANE) if self.bits else _LANE
        return min(limit, self.columns & -self.columns)


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program reads at once: `part_rows` rows of bytes by `chunks` * lane columns.

    `tokens` is the block of rows that it multiplies them by; `is_even`: nothing lies beyond the matrix.
    """

    part_rows: int
    chunks: int
    tokens: int
    is_even: bool
    num_warps: int
    num_stages: int


def up_matrix(layout: BlobLayout, *, has_gate: bool, pairing: Pairing, is_transposed: bool) -> Matrix:
    """The first projection. In halves, gate and up are two parts even where they share no byte."""
    name = "gate_up_proj" if has_gate else "up_proj"
    return _matrix(layout, name, is_transposed, min_parts=2 if pairing == "halves" else 1)


def down_matrix(layout: BlobLayout, *, is_transposed: bool) -> Matrix:
    return _matrix(layout, "down_proj", is_transposed, min_parts=1)


def decode_tile(matrix: Matrix) -> Tile:
    """256 columns (unquantized 64) by so many rows that each of 128 threads has 32 bytes to load at once.

    Scales, zeros and activations of a tile are fewer than the threads, which spares them a detour
    through shared memory.
    """
    columns = _DECODE_COLUMNS if matrix.bits else _LANE
    chunks = max(min(columns, _power_of_two(matrix.columns)) // matrix.lane, 1)
    part_rows = _DECODE_TILE // chunks if matrix.bits else _DECODE_TILE // (2 * matrix.parts)
    if matrix.bits == 3:
        part_rows //= 2  # eight sums of three planes: registers
    part_rows = max(min(part_rows, _power_of_two(matrix.part_rows)), 2)
    return Tile(part_rows, chunks, 1, _is_even(matrix, part_rows, chunks), num_warps=4, num_stages=2)


def block_tile(matrix: Matrix, num_tokens: int, *, is_wide: bool) -> Tile:
    """A block of rows by 64 rows of weights and 64 columns, for matrix units.

    `is_wide`: float32 activations, whose large blocks would need more registers than there are.
    """
    part_rows = max(_BLOCK_WEIGHTS // matrix.parts, 2)
    chunks = max(_LANE // matrix.lane, 1)
    num_rows = rows_of_block(num_tokens, is_wide=is_wide)
    is_even = _is_even(matrix, part_rows, chunks)
    return Tile(part_rows, chunks, num_rows, is_even, num_warps=4, num_stages=3)


def rows_of_block(num_tokens: int, *, is_wide: bool) -> int:
    """How many of an expert's rows a block has at most, for every matrix alike."""
    return 16 if is_wide or num_tokens <= MAX_SMALL_BLOCK_TOKENS else 64


def _matrix(layout: BlobLayout, name: str, is_transposed: bool, min_parts: int) -> Matrix:
    segments = {segment.name: segment for segment in layout.segments}
    bias = segments.get(name + "_bias")
    if layout.bits == "none":
        weight = segments[name]
        rows, columns = reversed(weight.shape) if is_transposed else weight.shape
        parts, plane, low_plane, scale, zero = min_parts, weight.offset, -1, -1, -1
        dtype = weight.dtype
    else:
        planes = [segments[name + end] for end, _ in CODE_PLANES[layout.bits]]
        rows, columns = segments[name + ".scale"].shape[0], planes[0].shape[1]
        codes_per_byte = 8 // min(width for _, width in CODE_PLANES[layout.bits])
        parts, plane = max(codes_per_byte, min_parts), planes[0].offset
        low_plane = planes[1].offset if len(planes) > 1 else -1
        scale, zero = segments[name + ".scale"].offset, segments[name + ".zero"].offset
        dtype, is_transposed = "uint8", False
    if rows * columns >= _INDEX_LIMIT:
        raise ValueError(
            f"{name} has {rows} x {columns} weights an expert, the triton kernel counts to {_INDEX_LIMIT}: "
            'run it with the "reference" kernel'
        )
    return Matrix(
        bits=0 if layout.bits == "none" else int(layout.bits),
        group=layout.group,
        rows=rows,
        columns=columns,
        parts=parts,
        plane=plane,
        low_plane=low_plane,
        scale=scale,
        zero=zero,
        bias=bias.offset if bias else -1,
        dtype=dtype,
        bias_dtype=bias.dtype if bias else "float32",
        is_transposed=is_transposed,
    )


def _is_even(matrix: Matrix, part_rows: int, chunks: int) -> bool:
    return matrix.part_rows % part_rows == 0 and matrix.columns % (chunks * matrix.lane) == 0


def _power_of_two(value: int) -> int:
    """The smallest power of two that is not below `value`."""
    return 1 << (value - 1).bit_length()
