"""Whether every byte of a store is the one that its conversion wrote."""

from contextlib import closing
from pathlib import Path

import numpy as np

from launch.doctor.finding import Finding
from loader.store_files import StoreFiles
from protocol.errors import SidestageError
from protocol.manifest import Manifest
from protocol.units import format_size


def store_integrity(store: Path) -> Finding:
    """Manifest, lengths, and every expert's bytes against its checksum."""
    name = f"store {store}"
    try:
        manifest = Manifest.read(store)
        manifest.check_shards(store)
        with closing(StoreFiles(store, manifest, verify=True)) as files:
            blob = np.empty(manifest.layout.stride, np.uint8)
            for key in range(manifest.num_keys):
                files.read(key, blob)
    except (SidestageError, OSError) as error:
        return Finding(name, "fail", str(error), "remove it and convert again")
    size = format_size(manifest.expert_bytes_total)
    text = f"{manifest.num_keys} experts, {manifest.layout.bits} bit, {size}, every checksum right"
    return Finding(name, "ok", text)
