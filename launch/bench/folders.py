"""Where the models of a bench lie: found, converted, or synthesized into the cache folder and kept."""

import os
import sys
from pathlib import Path

from compute.cache_folder import cache_home, find_store
from launch.bench.config import BenchConfig
from launch.plan import SHIPPED_MODEL
from protocol.child import Child
from protocol.errors import ModelError
from protocol.manifest import MANIFEST_FILE, Manifest

#: Part of the folders' names: another number makes everything anew.
_SYNTHESIS = 1


def store_of(config: BenchConfig) -> tuple[Path, Manifest]:
    """The store of the model or shape, whole."""
    if config.shape is None:
        store = find_store(config.model or SHIPPED_MODEL, config.quantization)
    else:
        bits, group, _ = config.quantization.settled()
        store = _made(config, bits, group)
    manifest = Manifest.read(store)
    manifest.check_shards(store)
    return store, manifest


def checkpoint_of(config: BenchConfig) -> Path:
    """The folder of the checkpoint for stock arms. Raises ModelError when there is none."""
    if config.shape is not None:
        return _made(config, "checkpoint", 0)
    folder = Path(config.model or SHIPPED_MODEL).expanduser()
    if (folder / MANIFEST_FILE).is_file():
        raise ModelError(
            f"{folder} is a store, stock transformers needs the checkpoint: name it, or leave the arms "
            f"transformers and accelerate out"
        )
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(config.model), local_files_only=True))


def _made(config: BenchConfig, bits: str, group: int) -> Path:
    """The shape's store or checkpoint, made if it is not there."""
    assert config.shape is not None
    layers = "all" if config.layers is None else str(config.layers)
    name = f"{config.shape}-{layers}-{bits}" + (f"-g{group}" if group else "")
    folder = cache_home() / "bench" / f"{name}-v{_SYNTHESIS}"
    if not folder.is_dir():
        argv = [str(folder), config.shape, str(config.layers or 0), bits, str(group)]
        sys.stderr.write(f"making {folder}, once\n")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with Child.spawn(
            [sys.executable, "-P", "-m", "launch.bench.synthesis", *argv],
            name="synthesis",
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "TRANSFORMERS_VERBOSITY": "error"},
            ready_timeout_s=None,
        ) as child:
            child.wait_ready()
    return folder
