"""A store of random blobs: real safetensors shards with real checksums, made without torch."""

import json
import struct
from pathlib import Path

import numpy as np
import xxhash

from protocol.blob import BLOB_ALIGNMENT, BlobLayout
from protocol.manifest import Manifest, Shard


def make_store(
    folder: Path,
    num_layers: int,
    num_experts: int,
    top_k: int,
    stride_kib: int = 64,
    experts_per_shard: int | None = None,
    seed: int = 0,
) -> Manifest:
    """Write the store into `folder` (made when missing) and return its manifest.

    The bytes of expert `key` are `expected_blob(manifest, key, seed)`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stride = stride_kib * 1024
    num_keys = num_layers * num_experts
    per_shard = experts_per_shard or num_experts
    layout = BlobLayout.pack("none", 0, [("gate_up_proj", "uint8", (stride,))])
    shards = []
    checksums: list[int] = []
    for number, first in enumerate(range(0, num_keys, per_shard)):
        keys = range(first, min(first + per_shard, num_keys))
        name = f"experts-{number:05d}.safetensors"
        blobs = [random_blob(key, stride, seed) for key in keys]
        names = [f"layers.{key // num_experts}.experts.{key % num_experts}" for key in keys]
        data_offset = write_shard(folder / name, names, blobs)
        shards.append(Shard(name, first, len(keys), data_offset))
        checksums += [xxhash.xxh3_64_intdigest(blob) for blob in blobs]
    manifest = Manifest(
        model_type="synthetic",
        architecture="SyntheticForCausalLM",
        source="synthetic",
        dtype="float32",
        fast=True,
        quantized_on="",
        num_experts=num_experts,
        top_k=top_k,
        layers=tuple(f"model.layers.{layer}.mlp.experts" for layer in range(num_layers)),
        layout=layout,
        shards=tuple(shards),
        checksums=tuple(checksums),
    )
    manifest.write(folder)
    return manifest


def expected_blob(manifest: Manifest, key: int, seed: int = 0) -> bytes:
    """What the frame of expert `key` must hold."""
    return random_blob(key, manifest.layout.stride, seed)


def random_blob(key: int, stride: int, seed: int) -> bytes:
    return np.random.default_rng([seed, key]).bytes(stride)


def write_shard(path: Path, names: list[str], blobs: list[bytes]) -> int:
    """A safetensors file of uint8 tensors whose data starts at a multiple of 4 KiB; returns where."""
    header: dict[str, object] = {}
    end = 0
    for name, blob in zip(names, blobs, strict=True):
        header[name] = {"dtype": "U8", "shape": [len(blob)], "data_offsets": [end, end + len(blob)]}
        end += len(blob)
    text = json.dumps(header).encode()
    data_offset = -(-(8 + len(text)) // BLOB_ALIGNMENT) * BLOB_ALIGNMENT
    text = text.ljust(data_offset - 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))
    return data_offset


def place_of(folder: Path, manifest: Manifest, key: int) -> tuple[Path, int]:
    """The shard that holds expert `key`, and where in it."""
    shard = next(s for s in manifest.shards if s.first_key <= key < s.first_key + s.num_experts)
    return folder / shard.file, shard.data_offset + (key - shard.first_key) * manifest.layout.stride


def corrupt_blob(folder: Path, manifest: Manifest, key: int) -> None:
    """Flip every bit of expert `key`'s first byte on disk; again, and it is whole."""
    path, offset = place_of(folder, manifest, key)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))
