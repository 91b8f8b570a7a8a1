"""Reading a store's experts back, and comparing two stores byte for byte."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from protocol.manifest import Manifest


def read_blobs(store: Path) -> list[npt.NDArray[np.uint8]]:
    """Every expert's blob [stride], by key, read at the offsets that the manifest names."""
    manifest = Manifest.read(store)
    manifest.check_shards(store)
    blobs: list[npt.NDArray[np.uint8]] = []
    for shard in manifest.shards:
        data = np.fromfile(store / shard.file, np.uint8, offset=shard.data_offset)
        blobs += list(data.reshape(shard.num_experts, manifest.layout.stride))
    return blobs


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` by its relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
