"""Writes a store's expert shards and dense weights into a folder, part by part, so that it can go on.

A shard is a safetensors file of about 1 GiB with one uint8 tensor [stride] for each expert. Every
part is journaled after its bytes; what a journal claims is compared with the bytes before it counts.
Knows neither models nor what the folder will be called.
"""

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import xxhash

from loader.journal import JOURNAL_FILE, Claims, Journal, Parameters, read_claims
from loader.tensors import TensorEntry, TensorReader, copy_tensors, encode_header
from protocol.blob import BlobLayout
from protocol.manifest import Shard

DENSE_FILE = "model.safetensors"
SHARD_BYTES = 2**30
_HASH_BYTES = 8 * 2**20

Blob = npt.NDArray[np.uint8]


class StoreWriter:
    """One store on its way. Experts are written in the order of their keys, from `num_written` on."""

    def __init__(
        self,
        folder: Path,
        layout: BlobLayout,
        num_layers: int,
        num_experts: int,
        parameters: Parameters,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        """Opens the folder's journal and keeps what is true of it."""
        self._folder = folder
        self._layout = layout
        self._headers, self.shards = _plan_shards(layout, num_layers * num_experts, num_experts, shard_bytes)
        self._fd: int | None = None
        claims = read_claims(folder, parameters)
        dense = claims.dense if self._is_dense_true(claims) else None
        experts = claims.experts[: self._count_true_experts(claims)]
        self._journal = Journal(folder, parameters, dense, experts)
        self._remove_leftovers()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """What is written stays, resumable. Idempotent."""
        self._close_shard()
        self._journal.close()

    @property
    def num_written(self) -> int:
        return len(self._journal.claims.experts)

    @property
    def checksums(self) -> Sequence[int]:
        """xxh3_64 of the blobs written so far, by key."""
        return self._journal.claims.experts

    @property
    def has_dense(self) -> bool:
        return self._journal.claims.dense is not None

    def write_dense(self, reader: TensorReader, entries: Iterable[TensorEntry]) -> None:
        """Copy the dense tensors byte for byte, in the checkpoint's own names."""
        path = self._folder / DENSE_FILE
        copy_tensors(reader, entries, path)
        self._journal.record_dense(_checksum_of_file(path))
        self._journal.sync()

    def write_expert(self, blob: Blob) -> None:
        """Append the next expert's `blob` [stride]."""
        shard = self._shard_of(self.num_written)
        if self._fd is None:
            self._open_shard(shard)
        assert self._fd is not None and blob.nbytes == self._layout.stride
        _write_all(self._fd, blob, self._position(shard, self.num_written))
        self._journal.record_expert(xxhash.xxh3_64_intdigest(blob.data))
        if self.num_written == shard.first_key + shard.num_experts:
            os.fsync(self._fd)
            self._journal.sync()
            self._close_shard()

    # --- shards ------------------------------------------------------------------------------

    def _shard_of(self, key: int) -> Shard:
        return self.shards[key // self.shards[0].num_experts]

    def _position(self, shard: Shard, key: int) -> int:
        return shard.data_offset + (key - shard.first_key) * self._layout.stride

    def _open_shard(self, shard: Shard) -> None:
        """Create the shard, or cut it behind its last true expert."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(self._folder / shard.file, flags, 0o666)
        _write_all(self._fd, np.frombuffer(self._headers[shard.file], np.uint8), 0)
        os.ftruncate(self._fd, self._position(shard, self.num_written))

    def _close_shard(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    # --- resuming ----------------------------------------------------------------------------

    def _is_dense_true(self, claims: Claims) -> bool:
        path = self._folder / DENSE_FILE
        return claims.dense is not None and path.is_file() and _checksum_of_file(path) == claims.dense

    def _count_true_experts(self, claims: Claims) -> int:
        """How many experts, from the first on, are on disk as the journal claims."""
        blob = np.empty(self._layout.stride, np.uint8)
        num_keys = self.shards[-1].first_key + self.shards[-1].num_experts
        for key, checksum in enumerate(claims.experts[:num_keys]):
            shard = self._shard_of(key)
            path = self._folder / shard.file
            if key == shard.first_key and not _starts_with(path, self._headers[shard.file]):
                return key
            if not _read_blob(path, blob, self._position(shard, key)):
                return key
            if xxhash.xxh3_64_intdigest(blob.data) != checksum:
                return key
        return min(len(claims.experts), num_keys)

    def _remove_leftovers(self) -> None:
        """Whatever is neither the journal's nor true."""
        kept = {shard.file for shard in self.shards if shard.first_key < self.num_written}
        kept |= {JOURNAL_FILE, *([DENSE_FILE] if self.has_dense else [])}
        for path in self._folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in kept:
                path.unlink()


def _plan_shards(
    layout: BlobLayout, num_keys: int, num_experts: int, shard_bytes: int
) -> tuple[dict[str, bytes], tuple[Shard, ...]]:
    """Headers by file name, and the shards: equally many experts in each but the last."""
    per_shard = max(shard_bytes // layout.stride, 1)
    starts = range(0, num_keys, per_shard)
    headers: dict[str, bytes] = {}
    shards: list[Shard] = []
    for number, first_key in enumerate(starts, 1):
        keys = range(first_key, min(first_key + per_shard, num_keys))
        file = f"experts-{number:05d}-of-{len(starts):05d}.safetensors"
        headers[file] = encode_header(
            (
                f"layers.{key // num_experts}.experts.{key % num_experts}",
                "U8",
                (layout.stride,),
                layout.stride,
            )
            for key in keys
        )
        shards.append(Shard(file, first_key, len(keys), len(headers[file])))
    return headers, tuple(shards)


def _write_all(fd: int, data: Blob, offset: int) -> None:
    rest = data.data
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written


def _starts_with(path: Path, header: bytes) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(header)) == header


def _read_blob(path: Path, blob: Blob, offset: int) -> bool:
    """Fill `blob` from the file; False when the file is missing or too short."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.readinto(blob.data) == blob.nbytes
    except FileNotFoundError:
        return False


def _checksum_of_file(path: Path) -> int:
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_BYTES):
            digest.update(chunk)
    return digest.intdigest()
