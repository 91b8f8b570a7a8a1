"""Synthesis: a store, or a stock checkpoint, with a shape's real dimensions and no meaning.

Nothing is quantized: codes are random, scales and zeros plausible. A few experts are made and
written to all places, so that the files really have every expert. Runs in a process of its own:
`python -P -m launch.bench.synthesis FOLDER SHAPE LAYERS BITS GROUP`, BITS "checkpoint" for the latter.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from launch.bench import shapes
from loader.anatomy import Anatomy, study
from loader.quantize import plan_layout
from loader.store import StorePlace, Wanted
from loader.store_writer import DENSE_FILE, Blob, StoreWriter
from loader.tensors import TensorReader, encode_header, read_entries
from protocol.blob import BlobLayout, Segment
from protocol.child import Lifeline, report_error, report_ready
from protocol.errors import SidestageError, StoreError
from protocol.manifest import Manifest

CHECKPOINT = "checkpoint"
CONFIG_FILE = "config.json"

_NUM_DISTINCT = 8
_STD = 0.02
#: Weights drawn once; a tensor takes as many of them, again and again, as it has.
_NUM_DRAWN = 2**22


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is to be made; `layers` None: all."""

    shape: str
    layers: int | None
    bits: str
    group: int

    @property
    def source(self) -> str:
        """What a store made of it says it is."""
        return f"synthetic-{self.shape}-{self.layers or 'all'}"


def make_checkpoint(folder: Path, recipe: Recipe) -> None:
    """Write config and random bfloat16 weights into `folder`, streaming. It appears whole, or not at all."""
    draft = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    draft.mkdir(parents=True)
    anatomy = _study(draft, recipe)
    _write_weights(draft, _tensors(anatomy, has_experts=True))
    draft.rename(folder)


def make_store(folder: Path, recipe: Recipe) -> None:
    """Write the store into `folder`; it appears whole, or not at all."""
    place = StorePlace(folder)
    wanted = Wanted(recipe.source, recipe.bits, recipe.group, fast=recipe.bits != "none")
    with place.locked(), TemporaryDirectory(dir=folder.parent, prefix=".synthesis-") as aside:
        if place.holds(wanted):
            return
        anatomy = _study(Path(aside), recipe)
        dtypes = {parameter.name: torch.bfloat16 for parameter in anatomy.parameters}
        layout = plan_layout(anatomy, dtypes, recipe.bits, recipe.group)
        num_layers, num_experts = len(anatomy.layers), anatomy.num_experts
        place.open_partial()
        with StoreWriter(place.partial, layout, num_layers, num_experts, {"source": recipe.source}) as writer:
            place.check_space(num_layers * num_experts * layout.stride)
            _write_dense(writer, Path(aside), anatomy)
            distinct = [_blob(layout, seed) for seed in range(_NUM_DISTINCT)]
            for key in range(writer.num_written, num_layers * num_experts):
                writer.write_expert(distinct[key % _NUM_DISTINCT])
            shutil.copyfile(Path(aside, CONFIG_FILE), place.partial / CONFIG_FILE)
            _manifest(anatomy, layout, writer, wanted).write(place.partial)
        place.publish()


def _study(folder: Path, recipe: Recipe) -> Anatomy:
    (folder / CONFIG_FILE).write_text(json.dumps(shapes.config_of(recipe.shape, recipe.layers), indent=1))
    return study(folder)


# --- weights ------------------------------------------------------------------------------------


def _tensors(anatomy: Anatomy, has_experts: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of what a checkpoint holds."""
    for name, tensor in anatomy.model.state_dict().items():
        if has_experts or not name.startswith(tuple(f"{layer}." for layer in anatomy.layers)):
            yield name, tuple(tensor.shape)


def _write_weights(folder: Path, tensors: Iterator[tuple[str, tuple[int, ...]]]) -> None:
    """One safetensors file: norms are 1, biases 0, all else is random."""
    listed = [(name, shape, 2 * int(np.prod(shape))) for name, shape in tensors]
    drawn = _normal(_NUM_DRAWN, seed=0)
    with (folder / DENSE_FILE).open("wb") as file:
        file.write(encode_header((name, "BF16", shape, size) for name, shape, size in listed))
        for name, shape, size in listed:
            for chunk in _values(name, shape, size, drawn):
                file.write(chunk)


def _values(name: str, shape: tuple[int, ...], size: int, drawn: Blob) -> Iterator[bytes]:
    if name.endswith("bias"):
        yield bytes(size)
    elif len(shape) == 1:
        yield torch.ones(shape, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
    else:
        for done in range(0, size, len(drawn)):
            yield drawn[: size - done].tobytes()


def _normal(count: int, seed: int) -> Blob:
    """`count` bfloat16 weights as bytes."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.empty(count).normal_(0, _STD, generator=generator).bfloat16()
    drawn: Blob = weights.view(torch.uint8).numpy()
    return drawn


def _write_dense(writer: StoreWriter, aside: Path, anatomy: Anatomy) -> None:
    """By way of a file of its own in `aside`, which the store's is copied from."""
    if writer.has_dense:
        return
    _write_weights(aside, _tensors(anatomy, has_experts=False))
    with TensorReader() as reader:
        writer.write_dense(reader, read_entries(aside / DENSE_FILE).values())


# --- experts ------------------------------------------------------------------------------------


def _blob(layout: BlobLayout, seed: int) -> Blob:
    """One expert [stride] whose weights look like a model's: centred, of the usual deviation."""
    random = np.random.default_rng(seed)
    blob = np.zeros(layout.stride, np.uint8)
    for segment in layout.segments:
        part = _segment(segment, layout.bits, random)
        blob[segment.offset : segment.offset + segment.num_bytes] = part
    return blob


def _segment(segment: Segment, bits: str, random: np.random.Generator) -> Blob:
    num_values = int(np.prod(segment.shape))
    if segment.dtype == "uint8":
        return random.integers(0, 256, segment.num_bytes, dtype=np.uint8)
    if segment.name.endswith("_bias"):
        return np.zeros(segment.num_bytes, np.uint8)
    if bits == "none":
        return _normal(num_values, int(random.integers(2**31)))
    most = 2 ** int(bits) - 1
    is_zero = segment.name.endswith(".zero")
    value = most / 2 if is_zero else _STD * 12**0.5 / most  # codes are spread evenly
    spread = 0.05 * value * random.standard_normal(num_values)
    values: Blob = (value + spread).astype(np.float16).view(np.uint8)
    return values


def _manifest(anatomy: Anatomy, layout: BlobLayout, writer: StoreWriter, wanted: Wanted) -> Manifest:
    return Manifest(
        model_type=anatomy.model_type,
        architecture=anatomy.architecture,
        source=wanted.source,
        dtype="bfloat16",
        fast=wanted.fast,
        quantized_on="" if wanted.bits == "none" else "cpu",
        num_experts=anatomy.num_experts,
        top_k=anatomy.top_k,
        layers=anatomy.layers,
        layout=layout,
        shards=writer.shards,
        checksums=tuple(writer.checksums),
    )


# --- as a process -------------------------------------------------------------------------------


def main() -> int:
    """Make what the command line names; ready is {"folder": it}, when it is there."""
    options = _options()
    Lifeline(options.lifeline_fd).watch(lambda: os._exit(1))
    recipe = Recipe(options.shape, options.layers or None, options.bits, options.group)
    folder = Path(options.folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        if options.bits == CHECKPOINT:
            make_checkpoint(folder, recipe)
        else:
            make_store(folder, recipe)
    except (SidestageError, ValueError) as error:
        report_error(options.ready_fd, str(error))
        return 1
    except OSError as error:
        report_error(options.ready_fd, str(StoreError(f"{folder} could not be written: {error}")))
        return 1
    report_ready(options.ready_fd, {"folder": str(folder)})
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launch.bench.synthesis")
    parser.add_argument("folder")
    parser.add_argument("shape")
    parser.add_argument("layers", type=int, help="0: all")
    parser.add_argument("bits")
    parser.add_argument("group", type=int)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--lifeline-fd", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
