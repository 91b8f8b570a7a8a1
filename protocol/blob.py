"""BlobLayout: where each part of one expert lies inside its blob.

Owns the description only: names, dtypes, shapes, offsets, stride and fingerprint.
Knows nothing of quantization arithmetic, of files or of memory.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

SEGMENT_ALIGNMENT = 128
BLOB_ALIGNMENT = 4096

DTYPE_BYTES: Mapping[str, int] = {
    "uint8": 1,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
}

#: How quantized codes lie in a blob, by bits: planes, highest bits first, as (end of the segment's
#: name, bits of the code in this plane). A byte of a plane holds one column of several rows: with p
#: codes a byte, rows r, r + N/p, r + 2N/p, ... of a matrix [N, K] from the highest bits down.
CODE_PLANES: Mapping[str, tuple[tuple[str, int], ...]] = {
    "8": ((".q", 8),),
    "4": ((".q", 4),),
    "3": ((".q", 2), (".q1", 1)),
    "2": ((".q", 2),),
}

BITS = (*CODE_PLANES, "none")
#: Numbers of weights along K that may share a scale and a zero.
GROUPS = (16, 32, 64, 128, 256, 512, 1024)


def align_up(value: int, alignment: int) -> int:
    """The smallest multiple of `alignment` that is not below `value`."""
    return -(-value // alignment) * alignment


@dataclass(frozen=True, slots=True)
class Segment:
    """One tensor inside a blob, row-major, at `offset` bytes from the blob's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class BlobLayout:
    """The layout that every expert of a store shares.

    `stride` is the padded size of a blob in bytes, a multiple of 4 KiB.
    `bits` is "8", "4", "3", "2" or "none"; `group` is the number of weights along K
    that share a scale and a zero (0 for "none").
    """

    bits: str
    group: int
    segments: tuple[Segment, ...]
    stride: int

    @classmethod
    def pack(cls, bits: str, group: int, parts: Iterable[tuple[str, str, tuple[int, ...]]]) -> "BlobLayout":
        """Lay `parts` (name, dtype, shape) one after the other, 128-byte aligned, padded to 4 KiB."""
        segments: list[Segment] = []
        end = 0
        for name, dtype, shape in parts:
            segment = Segment(name, dtype, tuple(shape), align_up(end, SEGMENT_ALIGNMENT))
            segments.append(segment)
            end = segment.offset + segment.num_bytes
        return cls(bits, group, tuple(segments), align_up(end, BLOB_ALIGNMENT))

    def __post_init__(self) -> None:
        if self.stride <= 0 or self.stride % BLOB_ALIGNMENT:
            raise ValueError(f"blob stride {self.stride} is not a positive multiple of {BLOB_ALIGNMENT}")
        end = 0
        for segment in self.segments:
            if segment.dtype not in DTYPE_BYTES:
                raise ValueError(
                    f"segment {segment.name!r} has dtype {segment.dtype!r}; known: {', '.join(DTYPE_BYTES)}"
                )
            if any(side <= 0 for side in segment.shape):
                raise ValueError(f"segment {segment.name!r} has shape {segment.shape}")
            if segment.offset < end or segment.offset % SEGMENT_ALIGNMENT:
                raise ValueError(f"segment {segment.name!r} at {segment.offset} overlaps or is not aligned")
            end = segment.offset + segment.num_bytes
        if end > self.stride:
            raise ValueError(f"segments end at {end}, beyond the stride {self.stride}")

    def segment(self, name: str) -> Segment:
        """The segment called `name`. Raises KeyError when there is none."""
        for segment in self.segments:
            if segment.name == name:
                return segment
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, `from_json`'s inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "BlobLayout":
        """Strict inverse of `to_json`. Raises ValueError on anything else."""
        try:
            segments = tuple(
                Segment(str(s["name"]), str(s["dtype"]), tuple(int(n) for n in s["shape"]), int(s["offset"]))
                for s in data["segments"]
            )
            return cls(str(data["bits"]), int(data["group"]), segments, int(data["stride"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a blob layout: {error!r}") from error

    @property
    def fingerprint(self) -> str:
        """16 hex digits that two layouts share exactly when their bytes mean the same."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()
