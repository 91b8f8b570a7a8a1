"""Conversion: a checkpoint becomes a store, expert by expert, and goes on where it was interrupted.

Composes source, checkpoint, quantization and writing. Heavy imports happen once there is work to do.
Runs in a process of its own (`python -P -m loader convert`) or where `convert` is called.
"""

import argparse
import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from loader.progress import progress_bar
from loader.source import Source, find_source, is_store
from loader.store import StorePlace, Wanted, compare
from protocol.blob import BITS, GROUPS
from protocol.child import Lifeline, report_error, report_ready
from protocol.errors import SidestageError, StoreError
from protocol.manifest import SCHEMA_VERSION, Manifest

if TYPE_CHECKING:
    from loader.checkpoint import Checkpoint
    from loader.store_writer import StoreWriter
    from protocol.blob import BlobLayout

DEFAULT_BITS = "4"
DEFAULT_GROUP = 64

#: Called with (experts done, experts in all).
Progress = Callable[[int, int], None]

_log = logging.getLogger("sidestage")


def convert(
    model: str | Path,
    store: str | Path,
    *,
    bits: str = DEFAULT_BITS,
    group: int = DEFAULT_GROUP,
    fast: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the store of `model` (a folder or hub id) into the folder `store`, and return that folder.

    A whole store of the same parameters is left as it is; an interrupted conversion of the same
    parameters goes on. Without `progress` a bar is shown where stderr is a terminal. Raises
    ModelError, StoreError or ValueError with a sentence; after any of them, and after an
    interruption, what was written is kept for the next call.
    """
    place = StorePlace(Path(store).expanduser().resolve())
    bits, group, fast = _settled(bits, group, fast)
    if is_store(model):
        return _keep_store(Path(model).expanduser().resolve(), place.store, bits, group, fast)
    source = find_source(model)
    wanted = Wanted(f"{source.name}@{source.identity}", bits, group, fast)
    try:
        if not _stands(place, wanted):
            with place.locked():
                if not _stands(place, wanted):
                    _write(source, place, wanted, progress)
    except OSError as error:
        raise StoreError(f"{place.store} could not be written: {error}") from error
    return place.store


def _settled(bits: str, group: int, fast: bool) -> tuple[str, int, bool]:
    """Settings checked, those that mean nothing without quantization set to nothing."""
    if bits not in BITS:
        raise ValueError(f"--bits is {bits!r}; allowed: {', '.join(BITS)}")
    if bits == "none":
        return bits, 0, False
    if group not in GROUPS:
        raise ValueError(f"--group is {group}; allowed: {', '.join(map(str, GROUPS))}")
    return bits, group, fast


def _keep_store(model: Path, store: Path, bits: str, group: int, fast: bool) -> Path:
    """MODEL is a store: nothing to do when it is the STORE that is asked for, else an error."""
    manifest = Manifest.read(model)
    differences = compare(manifest, Wanted(manifest.source, bits, group, fast))
    if differences:
        raise ValueError(
            f"{model} is a store already, of {' and '.join(differences)}, and a store keeps what it has: "
            f"convert its checkpoint {manifest.source.partition('@')[0]} into another folder"
        )
    if model != store:
        raise ValueError(f"{model} is a store already: run it as it is, or copy the folder")
    _log.info("%s is that store already: nothing to do", store)
    return store


def _stands(place: StorePlace, wanted: Wanted) -> bool:
    stands = place.holds(wanted)
    if stands:
        _log.info("%s is whole already: nothing to do", place.store)
    return stands


def _write(source: Source, place: StorePlace, wanted: Wanted, progress: Progress | None) -> None:
    if place.completes(wanted):
        place.publish()
        return
    from loader.anatomy import study
    from loader.checkpoint import Checkpoint
    from loader.quantize import plan_layout
    from loader.store_writer import StoreWriter

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
    checkpoint: "Checkpoint", layout: "BlobLayout", fast: bool, writer: "StoreWriter", advance: Progress
) -> None:
    """One expert at a time, in one blob that is used again and again."""
    import numpy as np

    from loader.quantize import write_blob

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


def _store_bytes(checkpoint: "Checkpoint", layout: "BlobLayout") -> int:
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


def _manifest(
    checkpoint: "Checkpoint", wanted: Wanted, layout: "BlobLayout", writer: "StoreWriter"
) -> Manifest:
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


def main(argv: Sequence[str]) -> int:
    """`python -P -m loader convert ...`: the exit status. Ready is {"store": folder}, at the end."""
    options = _parser().parse_args(argv)
    if options.lifeline_fd is not None:
        Lifeline(options.lifeline_fd).watch(lambda: os._exit(1))
    _prepare_process()
    _log.addHandler(logging.StreamHandler())
    _log.setLevel(logging.INFO)
    try:
        settings = {"bits": options.bits, "group": options.group, "fast": options.fast}
        store = convert(options.model, options.store, **settings)
    except (SidestageError, ValueError) as error:
        return _fail(options.ready_fd, str(error), 1)
    except KeyboardInterrupt:
        return _fail(options.ready_fd, "interrupted: the same command goes on where it was", 130)
    if options.ready_fd is not None:
        report_ready(options.ready_fd, {"store": str(store)})
    return 0


def _prepare_process() -> None:
    """Before torch is imported: no GPU, no chatter, and threads that sleep where they would spin.

    Spinning makes a conversion several times slower beside any other work.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _fail(ready_fd: int | None, sentence: str, status: int) -> int:
    if ready_fd is not None:
        report_error(ready_fd, sentence)
    else:
        sys.stderr.write(f"sidestage: {sentence}\n")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -P -m loader convert", description="Checkpoint to store.")
    parser.add_argument("model", metavar="MODEL", help="a checkpoint's folder or hub id")
    parser.add_argument("store", metavar="STORE", help="the folder to write")
    parser.add_argument("--bits", default=DEFAULT_BITS)
    parser.add_argument("--group", type=int, default=DEFAULT_GROUP)
    parser.add_argument("--fast", action="store_true", help="plain rounding")
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--lifeline-fd", type=int)
    return parser
