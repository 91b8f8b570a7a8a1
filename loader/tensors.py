"""Safetensors files: read by explicit reads, written by streaming; never mapped, never whole in memory.

Owns the file format only. A header that we write is padded with spaces so that data starts at a
multiple of 4 KiB. Knows nothing of models, experts or stores.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from protocol.blob import BLOB_ALIGNMENT, align_up
from protocol.errors import ModelError

_LENGTH_BYTES = 8
_COPY_BYTES = 8 * 2**20

#: safetensors' names of the dtypes an expert may have, and torch's.
TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: `dtype` is safetensors' name, `offset` counts from the file's start."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


def read_entries(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file by name. Raises ModelError when it is truncated or no such file."""
    try:
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is not a whole safetensors file ({error}): download it again") from error
    header.pop("__metadata__", None)
    start = _LENGTH_BYTES + length
    return {name: _entry(path, name, record, start) for name, record in header.items()}


def _entry(path: Path, name: str, record: dict[str, Any], start: int) -> TensorEntry:
    first, end = record["data_offsets"]
    return TensorEntry(path, name, record["dtype"], tuple(record["shape"]), start + first, end - first)


class TensorReader:
    """Reads tensors of any number of files; holds one descriptor a file until `close`."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def read(self, entry: TensorEntry) -> torch.Tensor:
        """The whole tensor. Its dtype must be one of `TORCH_DTYPES`."""
        return self._read(entry, entry.shape, entry.offset)

    def read_row(self, entry: TensorEntry, row: int) -> torch.Tensor:
        """[1, ...]: one row of the first dimension."""
        shape = (1, *entry.shape[1:])
        row_bytes = entry.num_bytes // entry.shape[0]
        return self._read(entry, shape, entry.offset + row * row_bytes)

    def chunks(self, entry: TensorEntry) -> Iterator[bytes]:
        """The tensor's bytes, whatever its dtype, a few MiB at a time."""
        for done in range(0, entry.num_bytes, _COPY_BYTES):
            size = min(_COPY_BYTES, entry.num_bytes - done)
            chunk = bytearray(size)
            self._fill(entry.path, memoryview(chunk), entry.offset + done)
            yield bytes(chunk)

    def _read(self, entry: TensorEntry, shape: tuple[int, ...], offset: int) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=TORCH_DTYPES[entry.dtype])
        self._fill(entry.path, tensor.view(-1).view(torch.uint8).numpy().data, offset)
        return tensor

    def _fill(self, path: Path, into: memoryview, offset: int) -> None:
        descriptor = self._descriptors.get(path)
        if descriptor is None:
            descriptor = self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        done = 0
        while done < len(into):
            count = os.preadv(descriptor, [into[done:]], offset + done)
            if count == 0:
                raise ModelError(f"{path} ends before its tensors do: download it again")
            done += count


def encode_header(tensors: Iterable[tuple[str, str, tuple[int, ...], int]]) -> bytes:
    """The header for (name, dtype, shape, num_bytes) in file order, data starting at a multiple of 4 KiB."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape, num_bytes in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + num_bytes]}
        end += num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    padded = align_up(_LENGTH_BYTES + len(text), BLOB_ALIGNMENT) - _LENGTH_BYTES
    return padded.to_bytes(_LENGTH_BYTES, "little") + text.ljust(padded)


def copy_tensors(reader: TensorReader, entries: Iterable[TensorEntry], path: Path) -> None:
    """Write `entries` byte for byte into a new safetensors file, durably."""
    widest_first = sorted(entries, key=lambda entry: (-_element_bytes(entry), entry.name))
    with path.open("wb") as file:
        file.write(encode_header((e.name, e.dtype, e.shape, e.num_bytes) for e in widest_first))
        for entry in widest_first:
            for chunk in reader.chunks(entry):
                file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def _element_bytes(entry: TensorEntry) -> int:
    return entry.num_bytes // max(math.prod(entry.shape), 1)
