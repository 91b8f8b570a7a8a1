"""From the name of a model to its store: a store as it is, a checkpoint converted once and kept.

Owns the cache's place (XDG) and its keys. The conversion itself runs in a child process, which
locks, resumes and renames; nothing here reads a tensor.
"""

import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from protocol.child import Child
from protocol.errors import ModelError, StoreError
from protocol.manifest import MANIFEST_FILE, SCHEMA_VERSION, Manifest

DEFAULT_BITS = "4"
DEFAULT_GROUP = 64
BITS = ("8", "4", "3", "2", "none")

_CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
#: Files that a conversion reads or takes along.
_PARTS = (".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken")
_QUANTIZED_ON = "cpu"

_log = logging.getLogger("sidestage")


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a checkpoint shall be converted. None: not said, so a store keeps its own."""

    bits: str | None = None
    group: int | None = None
    fast: bool = False

    def __post_init__(self) -> None:
        if self.bits is not None and self.bits not in BITS:
            raise ValueError(f"--bits is {self.bits!r}; allowed: {', '.join(BITS)}")
        if self.group is not None and self.group < 1:
            raise ValueError(f"--group is {self.group}; it must be at least 1")

    def settled(self) -> tuple[str, int, bool]:
        """(bits, group, fast) of a conversion; without quantization the latter two mean nothing."""
        bits = self.bits or DEFAULT_BITS
        return (bits, 0, False) if bits == "none" else (bits, self.group or DEFAULT_GROUP, self.fast)


def cache_home() -> Path:
    """$XDG_CACHE_HOME/sidestage, by default ~/.cache/sidestage."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "sidestage"


def find_store(model: str | Path, quantization: Quantization) -> Path:
    """The folder of `model`'s store; a checkpoint (folder or hub id) is converted if need be.

    Raises ModelError for a model that cannot be found or served, StoreError for a damaged store,
    ValueError for a store of another quantization than asked for, SidestageError with the
    conversion's own sentence when it fails.
    """
    folder = Path(model).expanduser()
    if (folder / MANIFEST_FILE).is_file():
        check_quantization(folder, Manifest.read(folder), quantization)
        return folder.resolve()
    store = cached_store(model, quantization)
    if not (store / MANIFEST_FILE).is_file():
        _convert(str(model if not folder.is_dir() else folder.resolve()), store, quantization)
    _check_cached(store)
    return store


def check_quantization(store: Path, manifest: Manifest, asked: Quantization) -> None:
    """Raise ValueError when `asked` names another quantization than the store's own."""
    own = manifest.layout
    pairs = [("--bits", asked.bits, own.bits)]
    if own.bits != "none":
        pairs.append(("--group", str(asked.group) if asked.group else None, str(own.group)))
        pairs.append(("--fast", "yes" if asked.fast else None, "yes" if manifest.fast else "no"))
    for name, wanted, has in pairs:
        if wanted is not None and wanted != has:
            raise ValueError(
                f"{name} is {wanted}, but the store {store} was converted with {has}: "
                f"leave {name} out, or name the checkpoint instead of the store"
            )


def cached_store(model: str | Path, quantization: Quantization) -> Path:
    """Where the store of a checkpoint lies or will lie. Raises ModelError when there is no checkpoint."""
    folder = Path(model).expanduser()
    if folder.is_file():
        raise ModelError(f"{model} is a file, not a model: name the folder that holds its {_CONFIG}")
    name = folder.resolve().name if folder.is_dir() else str(model).replace("/", "--")
    identity = _identity_of_folder(folder) if folder.is_dir() else _identity_on_hub(str(model))
    bits, group, fast = quantization.settled()
    device = "" if bits == "none" else _QUANTIZED_ON
    key = json.dumps([SCHEMA_VERSION, bits, group, fast, device, identity])
    digest = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    return cache_home() / "stores" / f"{name}-{bits}-{digest}"


def _identity_of_folder(folder: Path) -> list[object]:
    """The config's and index's content; every other part by name, size and time."""
    if not (folder / _CONFIG).is_file():
        raise ModelError(f"{folder} is not a model: it has no {_CONFIG}")
    whole = [hashlib.blake2b(path.read_bytes()).hexdigest() for path in _existing(folder, _CONFIG, _INDEX)]
    parts = sorted(path for path in folder.iterdir() if path.suffix in _PARTS and path.is_file())
    stats = [(path.name, path.stat()) for path in parts]
    return [whole, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]]


def _existing(folder: Path, *names: str) -> Iterator[Path]:
    return (folder / name for name in names if (folder / name).is_file())


def _identity_on_hub(model: str) -> list[object]:
    """The commit that the hub, or its local cache when offline, names for `model`."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        config = hf_hub_download(model, _CONFIG)
    except HFValidationError:
        raise ModelError(
            f"there is no model {model!r}: "
            f"give the folder of a checkpoint or a store, or a hub id like org/name"
        ) from None
    except EntryNotFoundError as error:
        if type(error).__name__ != "LocalEntryNotFoundError":
            raise ModelError(f"{model} on the hub is not a model: it has no {_CONFIG}") from None
        raise ModelError(_unreachable(model, error)) from None
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(_unreachable(model, error)) from None
    return [model, Path(config).parent.name]


def _unreachable(model: str, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"there is no folder {model!r}, and the hub has no such model within reach: {reason}"


def _convert(model: str, store: Path, quantization: Quantization) -> None:
    """Run the conversion to its end, however long it takes; interrupted, it goes on next time."""
    bits, group, fast = quantization.settled()
    argv = [sys.executable, "-P", "-m", "loader", "convert", model, str(store), "--bits", bits]
    argv += ["--group", str(group or DEFAULT_GROUP), *(["--fast"] if fast else [])]
    store.parent.mkdir(parents=True, exist_ok=True)
    _log.info("converting %s to %s bits, once, into %s", model, bits, store)
    shows_progress = sys.stderr is not None and sys.stderr.isatty()
    with Child.spawn(argv, name="convert", ready_timeout_s=None, inherit_stderr=shows_progress) as child:
        child.wait_ready()


def _check_cached(store: Path) -> None:
    try:
        Manifest.read(store).check_shards(store)
    except StoreError as error:
        raise StoreError(f"{error}; it is a cache, so remove {store} and it will be made again") from None
