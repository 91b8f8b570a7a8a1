"""The work of a conversion: a checkpoint becomes a store, one expert at a time in one blob.

Composes checkpoint, quantization and writing. Imports torch and transformers, so it is imported
only once there is work to do.
"""

import contextlib
import logging
import os
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np

from loader.anatomy import study
from loader.checkpoint import Checkpoint
from loader.progress import Progress, progress_bar
from loader.quantize import plan_layout, write_blob
from loader.source import Source
from loader.store import StorePlace, Wanted
from loader.store_writer import StoreWriter
from protocol.blob import BlobLayout
from protocol.manifest import SCHEMA_VERSION, Manifest

_log = logging.getLogger("sidestage")


def write_store(source: Source, place: StorePlace, wanted: Wanted, progress: Progress | None) -> None:
    """Convert `source` into `place`, from where an earlier attempt stopped, and publish the store."""
    if place.completes(wanted):
        place.publish()
        return
    with Checkpoint(source, study(source.folder)) as checkpoint:
        anatomy = checkpoint.anatomy
        layout = plan_layout(anatomy, checkpoint.dtypes, wanted.bits, wanted.group)
        place.open_partial()
        parameters = _parameters(wanted, layout.fingerprint, checkpoint.num_keys)
        num_layers, num_experts = len(anatomy.layers), anatomy.num_experts
        with StoreWriter(place.partial, layout, num_layers, num_experts, parameters) as writer:
            if writer.num_written:
                _log.info("going on after %d of %d experts", writer.num_written, checkpoint.num_keys)
            place.check_space(_store_bytes(checkpoint, layout))
            _copy_companions(source, place.partial)
            if not writer.has_dense:
                writer.write_dense(checkpoint.reader, checkpoint.dense)
            with contextlib.nullcontext(progress) if progress else progress_bar(source.name) as advance:
                _write_experts(checkpoint, layout, wanted.fast, writer, advance)
            _manifest(checkpoint, wanted, layout, writer).write(place.partial)
    place.publish()


def _write_experts(
    checkpoint: Checkpoint, layout: BlobLayout, fast: bool, writer: StoreWriter, advance: Progress
) -> None:
    """One expert at a time, in one blob that is used again and again."""
    blob = np.empty(layout.stride, np.uint8)
    is_transposed = checkpoint.anatomy.is_transposed
    advance(writer.num_written, checkpoint.num_keys)
    for key in range(writer.num_written, checkpoint.num_keys):
        write_blob(blob, checkpoint.expert(key), layout, is_transposed=is_transposed, fast=fast)
        writer.write_expert(blob)
        advance(key + 1, checkpoint.num_keys)


def _parameters(wanted: Wanted, layout: str, num_keys: int) -> dict[str, str | int | bool]:
    """What must be equal for a conversion to go on where another was interrupted."""
    quantizer = "" if wanted.bits == "none" else f"hqq {version('hqq')}, torch {version('torch')}"
    return {
        "schema": SCHEMA_VERSION,
        "source": wanted.source,
        "bits": wanted.bits,
        "group": wanted.group,
        "fast": wanted.fast,
        "layout": layout,
        "num_keys": num_keys,
        "quantizer": quantizer,
    }


def _store_bytes(checkpoint: Checkpoint, layout: BlobLayout) -> int:
    """Experts and dense weights; headers, tokenizer and manifest are rounded up to 1 % and 64 MiB."""
    experts = checkpoint.num_keys * layout.stride
    dense = sum(entry.num_bytes for entry in checkpoint.dense)
    return (experts + dense) * 101 // 100 + 64 * 2**20


def _copy_companions(source: Source, folder: Path) -> None:
    for relative in source.companions():
        target = folder / relative
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source.folder / relative, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())


def _manifest(checkpoint: Checkpoint, wanted: Wanted, layout: BlobLayout, writer: StoreWriter) -> Manifest:
    anatomy = checkpoint.anatomy
    return Manifest(
        model_type=anatomy.model_type,
        architecture=anatomy.architecture,
        source=wanted.source,
        dtype=checkpoint.dtype,
        fast=wanted.fast,
        quantized_on="" if wanted.bits == "none" else "cpu",
        num_experts=anatomy.num_experts,
        top_k=anatomy.top_k,
        layers=anatomy.layers,
        layout=layout,
        shards=writer.shards,
        checksums=tuple(writer.checksums),
    )
