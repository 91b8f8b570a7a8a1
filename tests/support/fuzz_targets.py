"""Everything of ours that parses, as functions of bytes: each answers, or refuses with a sentence.

A target returns normally for whatever it understood or properly refused; any other exception is a
defect, and so is an answer that takes long or a refusal without words.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from loader.source import read_config
from loader.tensors import read_entries
from protocol.arena import Arena, ArenaGeometry
from protocol.codec import decode, encode
from protocol.errors import ProtocolError, SidestageError
from protocol.manifest import MANIFEST_FILE, Manifest
from protocol.units import parse_rate, parse_size

Target = Callable[[bytes], None]

_FOLDER = Path(tempfile.mkdtemp(prefix="sst-fuzz-", dir=os.environ.get("XDG_RUNTIME_DIR")))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)


def codec(data: bytes) -> None:
    """A message of the bus or the door; what is understood survives being written again."""
    try:
        message = decode(data)
    except ProtocolError as error:
        assert str(error)
        return
    assert decode(encode(message)) == message


def arena(data: bytes) -> None:
    """A memfd that somebody claims to be an arena."""
    fd = os.memfd_create("fuzzed", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        with Arena(fd, writable=False):
            return
    except SidestageError as error:
        assert str(error)
    except ValueError as error:
        assert "empty file" in str(error)
    finally:
        os.close(fd)


def manifest(data: bytes) -> None:
    """A store's manifest, and whether its shards are there."""
    (_FOLDER / MANIFEST_FILE).write_bytes(data)
    try:
        Manifest.read(_FOLDER).check_shards(_FOLDER)
    except SidestageError as error:
        assert str(error)


def safetensors(data: bytes) -> None:
    """The header of a weights file."""
    path = _FOLDER / "model.safetensors"
    path.write_bytes(data)
    try:
        read_entries(path)
    except SidestageError as error:
        assert str(error)


def config(data: bytes) -> None:
    """A checkpoint's config.json."""
    (_FOLDER / "config.json").write_bytes(data)
    try:
        read_config(_FOLDER)
    except SidestageError as error:
        assert str(error)


def trace(data: bytes) -> None:
    """A trace file."""
    from compute.trace_file import read

    path = _FOLDER / "trace.npz"
    path.write_bytes(data)
    try:
        read(path, max_bytes=1 << 22)
    except ValueError as error:
        assert "trace.npz" in str(error)


def units(data: bytes) -> None:
    """A size or a rate, as users write them."""
    text = data.decode(errors="replace")
    for parse in (parse_size, parse_rate):
        try:
            assert parse(text) >= 0
        except ValueError as error:
            assert str(error)


TARGETS: dict[str, Target] = {
    "codec": codec,
    "arena": arena,
    "manifest": manifest,
    "safetensors": safetensors,
    "config": config,
    "trace": trace,
    "units": units,
}

#: Geometry of the arena whose header is the corpus' good one.
GEOMETRY = ArenaGeometry(num_frames=2, frame_bytes=4096, num_clients=1, num_tickets=4)
