"""The manifest of a store: what it holds, where each expert lies, and how to trust it.

A store is a folder: `manifest.json`, expert shards (safetensors, one uint8 tensor [stride] per
expert, called `layers.L.experts.E`), and everything a skeleton needs in the checkpoint's own
names (config, generation config, tokenizer, dense weights). Knows no tensors, reads no weights.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from protocol.blob import BLOB_ALIGNMENT, BlobLayout
from protocol.errors import StoreError

MANIFEST_FILE = "manifest.json"
SCHEMA_VERSION = 1
MAX_MANIFEST_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Shard:
    """Experts `first_key` to `first_key + num_experts - 1`, `stride` bytes each, from `data_offset` on."""

    file: str
    first_key: int
    num_experts: int
    data_offset: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything `manifest.json` says.

    `dtype` is the checkpoint's own ("bfloat16", ...); `layers` names the experts module of each
    MoE layer as transformers names it; `checksums` are xxh3_64 of each padded blob, by key;
    `quantized_on` is the device that quantized ("cpu", "cuda", "" for `none`).
    """

    model_type: str
    architecture: str
    source: str
    dtype: str
    fast: bool
    quantized_on: str
    num_experts: int
    top_k: int
    layers: tuple[str, ...]
    layout: BlobLayout
    shards: tuple[Shard, ...]
    checksums: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.layers or self.num_experts <= 0 or not 0 < self.top_k <= self.num_experts:
            raise StoreError(
                f"damaged manifest: {len(self.layers)} layers, {self.num_experts} experts, top-{self.top_k}"
            )
        if len(self.checksums) != self.num_keys:
            raise StoreError(f"damaged manifest: {len(self.checksums)} checksums for {self.num_keys} experts")
        next_key = 0
        for shard in self.shards:
            if shard.first_key != next_key or shard.num_experts <= 0:
                raise StoreError(f"damaged manifest: shard {shard.file!r} does not follow its predecessor")
            if shard.data_offset <= 0 or shard.data_offset % BLOB_ALIGNMENT:
                raise StoreError(f"damaged manifest: shard {shard.file!r} starts at {shard.data_offset}")
            if Path(shard.file).name != shard.file or not shard.file.endswith(".safetensors"):
                raise StoreError(f"damaged manifest: {shard.file!r} is not a shard's file name")
            next_key += shard.num_experts
        if next_key != self.num_keys:
            raise StoreError(f"damaged manifest: shards hold {next_key} of {self.num_keys} experts")

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def num_keys(self) -> int:
        return len(self.layers) * self.num_experts

    @property
    def expert_bytes_total(self) -> int:
        """Bytes of all padded blobs."""
        return self.num_keys * self.layout.stride

    @property
    def fingerprint(self) -> str:
        """32 hex digits of everything above, so of every expert's bytes too."""
        canonical = json.dumps(self._body(), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()

    def write(self, folder: Path) -> None:
        """Write `manifest.json` durably: the file appears whole or not at all."""
        text = json.dumps(
            {"schema": SCHEMA_VERSION, "fingerprint": self.fingerprint, **self._body()}, indent=1
        )
        temporary = folder / (MANIFEST_FILE + ".tmp")
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(folder / MANIFEST_FILE)

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of the store in `folder`. Raises StoreError with a sentence."""
        path = folder / MANIFEST_FILE
        try:
            if path.stat().st_size > MAX_MANIFEST_BYTES:
                raise StoreError(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes: not a manifest")
            data = json.loads(path.read_text())
        except FileNotFoundError:
            raise StoreError(f"{folder} is not a store: it has no {MANIFEST_FILE}") from None
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{path} is damaged: {error}") from error
        if not isinstance(data, dict):
            raise StoreError(f"{path} is damaged: not a JSON object")
        schema = data.pop("schema", None)
        if schema != SCHEMA_VERSION:
            raise StoreError(
                f"{folder} has store schema {schema!r}, this sidestage reads {SCHEMA_VERSION}: convert again"
            )
        fingerprint = data.pop("fingerprint", None)
        manifest = cls._from_body(path, data)
        if fingerprint != manifest.fingerprint:
            raise StoreError(f"{path} is damaged: its content does not match its fingerprint")
        return manifest

    def check_shards(self, folder: Path) -> None:
        """Raise StoreError unless every shard is there, in full length."""
        for shard in self.shards:
            path = folder / shard.file
            expected = shard.data_offset + shard.num_experts * self.layout.stride
            if not path.is_file():
                raise StoreError(f"{path} is missing: the store is incomplete, convert again")
            size = path.stat().st_size
            if size != expected:
                raise StoreError(f"{path} is truncated or foreign: {size} bytes, {expected} expected")

    def _body(self) -> dict[str, Any]:
        body = {field.name: getattr(self, field.name) for field in fields(self)}
        body["layout"] = self.layout.to_json()
        body["shards"] = [asdict(shard) for shard in self.shards]
        return body

    @classmethod
    def _from_body(cls, path: Path, data: Mapping[str, Any]) -> "Manifest":
        expected = {field.name for field in fields(cls)}
        if set(data) != expected:
            odd = ", ".join(sorted(set(data) ^ expected))
            raise StoreError(f"{path} is damaged: missing or unknown entries: {odd}")
        try:
            return cls(
                model_type=_typed(data, "model_type", str),
                architecture=_typed(data, "architecture", str),
                source=_typed(data, "source", str),
                dtype=_typed(data, "dtype", str),
                fast=_typed(data, "fast", bool),
                quantized_on=_typed(data, "quantized_on", str),
                num_experts=_typed(data, "num_experts", int),
                top_k=_typed(data, "top_k", int),
                layers=tuple(str(name) for name in data["layers"]),
                layout=BlobLayout.from_json(data["layout"]),
                shards=tuple(
                    Shard(str(s["file"]), int(s["first_key"]), int(s["num_experts"]), int(s["data_offset"]))
                    for s in data["shards"]
                ),
                checksums=tuple(int(c) for c in data["checksums"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise StoreError(f"{path} is damaged: {error}") from error


def _typed(data: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    value = data[name]
    if type(value) is not kind:
        raise ValueError(f"{name} is {value!r}, expected {kind.__name__}")
    return value
