"""The trace file: an `.npz` without pickles, of which nothing is believed before it is checked.

Headers are read first: types, shapes and sizes are refused before an array is allocated, and no
more than `max_bytes` ever is. What the arrays mean is `compute.trace`'s.
"""

import json
import lzma
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import IO, TypeVar

import numpy as np
import numpy.typing as npt

from compute.trace import Int32Array, Json, Trace

#: What `read` allocates at most for one file, unless told otherwise.
MAX_BYTES = 4 << 30
MAX_META_BYTES = 1 << 20
MAX_MEMBERS = 64

#: The arrays that are read: name -> the kinds of dtype allowed ("i" signed, "u" unsigned, "f" float, ...).
KINDS = {
    "experts": "iu",
    "scores": "f",
    "probs": "f",
    "phase": "iub",
    "sequence": "iu",
    "pass": "iu",
    "token_id": "iu",
    "predicted": "iu",
    "meta": "U",
}

Number = TypeVar("Number", bound=np.generic)
Arrays = dict[str, npt.NDArray[np.generic]]


#: What zipfile and numpy raise for damage; RuntimeError: a member that claims to be encrypted.
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
)


def read(path: Path, max_bytes: int = MAX_BYTES) -> Trace:
    """The trace in `path`. Raises ValueError with one sentence where the file is not one."""
    try:
        if not path.is_file():
            raise ValueError("there is no such file")
        names = _readable(path, max_bytes)
        with np.load(path, allow_pickle=False) as file:
            return _trace({name: file[name] for name in names})
    except ValueError as error:
        raise ValueError(f"trace {path} cannot be used: {error}") from error
    except _BROKEN as error:
        raise ValueError(f"trace {path} is damaged or no .npz file ({error}): record it again") from error


def write(path: Path, trace: Trace) -> None:
    """Write `trace` to `path`, whole or not at all."""
    shape = {"n_layers": trace.num_layers, "n_experts": trace.num_experts, "top_k": trace.top_k}
    arrays: dict[str, npt.NDArray[np.generic] | None] = {
        "experts": trace.experts,
        "scores": trace.scores,
        "probs": trace.probs,
        "phase": trace.phase,
        "sequence": trace.sequence,
        "pass": trace.pass_number,
        "token_id": trace.token_id,
        "predicted": trace.predicted,
        "meta": np.array(json.dumps({**trace.meta, **shape})),
    }
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with draft.open("wb") as file:
            given = {name: array for name, array in arrays.items() if array is not None}
            np.savez_compressed(file, allow_pickle=False, **given)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


# --- before anything is allocated ----------------------------------------------------------------


def _readable(path: Path, max_bytes: int) -> list[str]:
    """The names of KINDS that the file holds; refuses, by the headers alone, what must not be read."""
    names: list[str] = []
    total = 0
    with zipfile.ZipFile(path) as archive:
        if len(archive.infolist()) > MAX_MEMBERS:
            raise ValueError(f"it holds more than {MAX_MEMBERS} arrays")
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            with archive.open(member) as file:
                num_bytes = _checked_size(file, name, member.file_size)
            if name not in KINDS:
                continue
            if name in names:
                raise ValueError(f'it holds "{name}" twice')
            names.append(name)
            total += num_bytes
            if total > max_bytes or (name == "meta" and num_bytes > MAX_META_BYTES):
                raise ValueError(f'"{name}" of {num_bytes} bytes is larger than is read here')
    return names


def _checked_size(file: IO[bytes], name: str, file_size: int) -> int:
    """Bytes of an array's data, as its header says and its member of the archive holds."""
    shape, dtype = _header(file, name)
    if dtype.hasobject:
        raise ValueError(f'"{name}" holds pickled Python objects, which are never read')
    if name in KINDS and dtype.kind not in KINDS[name]:
        raise ValueError(f'"{name}" is of type {dtype}, which the format does not allow')
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes + file.tell() != file_size:
        raise ValueError(f'"{name}" is truncated: {shape} of {dtype} is not what the file holds')
    return num_bytes


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read_header(file)
    except (ValueError, KeyError, SyntaxError, TokenError, RecursionError, MemoryError) as error:
        raise ValueError(f'"{name}" has no array header that is understood here') from error
    return shape, dtype


# --- after ---------------------------------------------------------------------------------------


def _trace(arrays: Arrays) -> Trace:
    experts = arrays.get("experts")
    if experts is None or experts.ndim != 3:
        raise ValueError('it has no array "experts" of the shape [tokens, layers, k]')
    meta = _meta(arrays.get("meta"))
    _check_meta(meta, experts.shape)
    return Trace(
        experts=_narrowed(experts, np.int16, "experts"),
        phase=_column(arrays, "phase", np.uint8, len(experts)),
        sequence=_column(arrays, "sequence", np.int32, len(experts)),
        num_experts=_num_experts(meta, arrays.get("probs")),
        scores=_half(arrays.get("scores")),
        probs=_half(arrays.get("probs")),
        pass_number=_optional_column(arrays, "pass"),
        token_id=_optional_column(arrays, "token_id"),
        predicted=_narrowed(arrays["predicted"], np.int16, "predicted") if "predicted" in arrays else None,
        meta=meta,
    )


def _meta(array: npt.NDArray[np.generic] | None) -> dict[str, Json]:
    if array is None:
        return {}
    try:
        meta = json.loads(str(array[()]))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'its "meta" is no JSON ({error})') from error
    if not isinstance(meta, dict):
        raise ValueError('its "meta" is no JSON object')
    return meta


def _check_meta(meta: dict[str, Json], shape: tuple[int, ...]) -> None:
    for name, size in (("n_layers", shape[1]), ("top_k", shape[2])):
        if meta.get(name, size) != size:
            raise ValueError(f'its "meta" says {name} = {meta[name]}, but "experts" have the shape {shape}')


def _num_experts(meta: dict[str, Json], probs: npt.NDArray[np.generic] | None) -> int:
    given = meta.get("n_experts")
    if given is None and probs is not None and probs.ndim == 3:
        given = probs.shape[2]
    if not isinstance(given, int) or isinstance(given, bool):
        raise ValueError(f'its "meta" must say n_experts, a number of experts, not {given!r}')
    return given


def _column(arrays: Arrays, name: str, dtype: type[Number], num_tokens: int) -> npt.NDArray[Number]:
    """A number a token; all 0 where the file has none."""
    return _narrowed(arrays[name], dtype, name) if name in arrays else np.zeros(num_tokens, dtype=dtype)


def _optional_column(arrays: Arrays, name: str) -> Int32Array | None:
    return _narrowed(arrays[name], np.int32, name) if name in arrays else None


def _half(array: npt.NDArray[np.generic] | None) -> npt.NDArray[np.float16] | None:
    return None if array is None else array.astype(np.float16)


def _narrowed(array: npt.NDArray[np.generic], dtype: type[Number], name: str) -> npt.NDArray[Number]:
    """`array` as `dtype`; refused where a number would change."""
    narrow = array.astype(dtype)
    if not np.array_equal(narrow, array):
        raise ValueError(f'its "{name}" hold numbers beyond {np.dtype(dtype).name}')
    return narrow
