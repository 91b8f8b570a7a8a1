"""A store's place on disk: what stands there already, who is writing there, and when it is whole.

A conversion writes `STORE.partial` under the lock `STORE.lock`; only a whole store is renamed to
STORE. Knows nothing of checkpoints, quantization or shards.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loader.journal import JOURNAL_FILE
from protocol.errors import StoreError
from protocol.manifest import MANIFEST_FILE, Manifest
from protocol.units import format_size

PARTIAL_SUFFIX = ".partial"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a store shall hold; `group` is 0 and `fast` False for bits "none"."""

    source: str
    bits: str
    group: int
    fast: bool


class StorePlace:
    """Where one store is or will be."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.partial = store.with_name(store.name + PARTIAL_SUFFIX)
        self.lock = store.with_name(store.name + ".lock")

    def holds(self, wanted: Wanted) -> bool:
        """Whether the whole store stands there already.

        Raises ValueError when it is a store of something else, StoreError when it is no whole store.
        """
        if not self.store.exists() or (self.store.is_dir() and not any(self.store.iterdir())):
            return False
        if not (self.store / MANIFEST_FILE).is_file():
            raise StoreError(f"{self.store} is there and is not a store: name another folder, or remove it")
        manifest = _read_whole(self.store)
        differences = compare(manifest, wanted)
        if differences:
            raise ValueError(
                f"{self.store} is a store of {' and '.join(differences)}: name another folder, or remove it"
            )
        return True

    def completes(self, wanted: Wanted) -> bool:
        """Whether the partial folder holds all of `wanted`, and only its last renaming was missed."""
        if not (self.partial / MANIFEST_FILE).is_file():
            return False
        with contextlib.suppress(StoreError):
            return not compare(_read_whole(self.partial), wanted)
        return False

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock. Raises StoreError at once when another process does."""
        self.store.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            fd = self._lock()
            stack.callback(os.close, fd)
            stack.callback(self.lock.unlink, missing_ok=True)
            yield

    def open_partial(self) -> None:
        """Make the partial folder; what another program put there is never touched."""
        self.partial.mkdir(exist_ok=True)
        found = {path.name for path in self.partial.iterdir()}
        if found and not found & {JOURNAL_FILE, MANIFEST_FILE, JOURNAL_FILE + ".tmp"}:
            raise StoreError(f"{self.partial} is in the way, and no conversion left it: remove it")
        (self.partial / MANIFEST_FILE).unlink(missing_ok=True)

    def check_space(self, total_bytes: int) -> None:
        """Raise StoreError unless `total_bytes` fit, counting what the partial folder holds already."""
        written = sum(path.stat().st_size for path in self.partial.iterdir() if path.is_file())
        free = shutil.disk_usage(self.partial).free
        if total_bytes - written > free:
            raise StoreError(
                f"{self.store} will need {format_size(total_bytes - written)} more, and the disk has "
                f"{format_size(free)} free: free some, or name a folder on another disk"
            )

    def publish(self) -> None:
        """Give the partial folder, which has its manifest by now, the store's name: durably, in one step."""
        (self.partial / JOURNAL_FILE).unlink(missing_ok=True)
        _sync_folder(self.partial)
        self.partial.rename(self.store)
        _sync_folder(self.store.parent)

    def _lock(self) -> int:
        """The locked fd. Whoever holds the lock may unlink its file, so the file is looked at again."""
        while True:
            fd = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(fd), self.lock.stat()):
                        return fd
            except BlockingIOError:
                os.close(fd)
                raise StoreError(
                    f"another conversion is writing {self.store}: wait for it to end, or name another folder"
                ) from None
            os.close(fd)


def compare(manifest: Manifest, wanted: Wanted) -> list[str]:
    """Where a store differs from what is wanted, in words; empty when it does not."""
    layout = manifest.layout
    pairs = [
        ("the checkpoint {}", manifest.source, wanted.source),
        ("{} bits", layout.bits, wanted.bits),
        ("group {}", layout.group, wanted.group),
        ("{} rounding", _rounding(manifest.fast), _rounding(wanted.fast)),
    ]
    return [f"{words.format(has)} (asked: {asked})" for words, has, asked in pairs if has != asked]


def _rounding(fast: bool) -> str:
    return "plain" if fast else "optimised"


def _read_whole(folder: Path) -> Manifest:
    manifest = Manifest.read(folder)
    manifest.check_shards(folder)
    return manifest


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
