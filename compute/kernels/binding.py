"""The C side of the CPU kernel as Python sees it: its structures, and the compiled library.

Follows cpu.c field by field; ABI tells a library of another version. Knows no tensors.
"""

import ctypes
from ctypes import POINTER, Structure, c_int, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from pathlib import Path

from protocol.blob import CODE_PLANES, BlobLayout

LIBRARY = Path(__file__).with_name("libcpu.so")
ABI = 2
ISAS = ("generic", "avx2", "avx512")

#: How cpu.c names the types of numbers in memory.
TYPES = {"float32": 0, "bfloat16": 1, "float16": 2}


class Matrix(Structure):
    """`Matrix` of cpu.c."""

    _fields_ = (
        *((name, c_int32) for name in ("bits", "group", "num_rows", "num_columns")),
        *((name, c_int64) for name in ("plane", "low_plane", "scale", "zero", "bias", "bias_type")),
    )


class Call(Structure):
    """`Call` of cpu.c."""

    _fields_ = (
        ("up", Matrix),
        ("down", Matrix),
        *((name, c_int32) for name in ("variant", "threads", "activation", "has_gate")),
        *((name, c_int32) for name in ("x_type", "out_type", "num_experts", "top_k")),
        ("num_tokens", c_int64),
        *((name, c_void_p) for name in ("blobs", "first", "places", "weights")),
        ("weights_type", c_int64),
        *((name, c_void_p) for name in ("x", "out")),
    )


@cache
def library() -> ctypes.CDLL | str:
    """The compiled cpu.c, or why it cannot be used."""
    if not LIBRARY.is_file():
        return f"{LIBRARY.name} was not compiled: install a C compiler, then sidestage again"
    try:
        found = ctypes.CDLL(str(LIBRARY))
        found_abi = found.sidestage_abi()
    except (OSError, AttributeError) as error:
        return f"{LIBRARY.name} cannot be used ({error}): install sidestage again"
    if found_abi != ABI:
        return f"{LIBRARY.name} is of another version of sidestage: install sidestage again"
    found.sidestage_open.restype = c_void_p
    found.sidestage_open.argtypes = (c_int,)
    found.sidestage_close.argtypes = (c_void_p,)
    found.sidestage_run.argtypes = (c_void_p, POINTER(Call))
    found.sidestage_project.argtypes = (c_void_p, POINTER(Call), c_int)
    found.sidestage_read.argtypes = (c_void_p, c_void_p, c_int64)
    found.sidestage_read.restype = c_uint64
    return found


def best_isa() -> str:
    """The widest instruction set that this machine runs. Needs the library."""
    found = library()
    assert isinstance(found, ctypes.CDLL), found
    return [name for number, name in enumerate(ISAS) if found.sidestage_has_isa(number)][-1]


def matrix_of(layout: BlobLayout, name: str) -> Matrix:
    """Where the parameter `name` lies in a blob, for C."""
    offsets = {segment.name: segment.offset for segment in layout.segments}
    planes = [layout.segment(name + end) for end, _ in CODE_PLANES[layout.bits]]
    scale = layout.segment(name + ".scale")
    bias = layout.segment(name + "_bias") if name + "_bias" in offsets else None
    return Matrix(
        bits=int(layout.bits),
        group=layout.group,
        num_rows=scale.shape[0],
        num_columns=planes[0].shape[1],
        plane=planes[0].offset,
        low_plane=planes[1].offset if len(planes) > 1 else -1,
        scale=scale.offset,
        zero=offsets[name + ".zero"],
        bias=bias.offset if bias else -1,
        bias_type=TYPES[bias.dtype] if bias else 0,
    )
