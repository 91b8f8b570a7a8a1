"""`convert`: what a checkpoint and a store's name ask for, and whether there is anything to do.

Decides before torch is imported; the work itself is conversion.py's. Runs where it is called, or in
a process of its own (`python -P -m loader convert`).
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from loader.progress import Progress
from loader.source import find_source, is_store
from loader.store import StorePlace, Wanted, compare
from protocol.blob import BITS, GROUPS
from protocol.child import Lifeline, report_error, report_ready
from protocol.errors import SidestageError, StoreError
from protocol.manifest import Manifest

DEFAULT_BITS = "4"
DEFAULT_GROUP = 64

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
                    from loader.conversion import write_store

                    write_store(source, place, wanted, progress)
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
