"""What crashed processes left: socket folders, unfinished conversions, broken stores, temporary folders.

`clean` removes what nobody uses; a whole store, and what a living process holds, always stays.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from compute.cache_folder import cache_home
from launch.doctor.finding import Finding
from loader.store import PARTIAL_SUFFIX, StorePlace
from protocol.errors import SidestageError, StoreError
from protocol.folder import create_folder, living_doors, remove_folder
from protocol.manifest import Manifest
from protocol.units import format_size

_FIX = "sidestage doctor --clean"
#: Folders in the temporary one that a killed command leaves; nothing tells whose they were but their age.
_TEMPORARY = ("sidestage-timeline-", "sidestage-stress-", "sidestage-accelerate-")
_OLD_S = 86400.0


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Folders that nobody uses."""

    sockets: tuple[Path, ...]
    conversions: tuple[Path, ...]
    broken: tuple[Path, ...]
    temporary: tuple[Path, ...]


def findings() -> Iterator[Finding]:
    yield sockets()
    yield cache()
    yield temporary()


def look() -> Leftovers:
    """All of them."""
    conversions, broken = _unusable_stores(cache_home() / "stores")
    return Leftovers(_dead_sockets(_socket_base()), conversions, broken, _old_temporary())


def clean() -> Iterator[Finding]:
    """Remove them, and tell what was removed."""
    left = look()
    for folder in left.sockets:
        remove_folder(folder)
    for folder in (*left.broken, *left.temporary):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in left.conversions:
        _remove_conversion(folder)
    for folder in (*left.sockets, *left.conversions, *left.broken, *left.temporary):
        yield _outcome(folder)


def sockets() -> Finding:
    """A folder as a loader makes it. Making one also removes what crashed processes left."""
    try:
        folder = create_folder()
    except ValueError as error:
        return Finding("sockets", "fail", str(error), "set XDG_RUNTIME_DIR to a short path of yours")
    try:
        dead = _dead_sockets(folder.parent)
        num_others = sum(1 for entry in folder.parent.iterdir() if entry != folder)
    finally:
        remove_folder(folder)
    text = f"{folder.parent}, {num_others - len(dead)} in use"
    return _finding("sockets", text, "left by processes that are gone", dead, _FIX)


def cache() -> Finding:
    """The folder of converted checkpoints: whole ones, and conversions that were interrupted."""
    stores = cache_home() / "stores"
    if not stores.is_dir():
        return Finding("cache", "ok", f"{stores} will be made")
    if not os.access(stores, os.W_OK):
        fix = "set XDG_CACHE_HOME to a folder of yours"
        return Finding("cache", "fail", f"{stores} cannot be written", fix)
    conversions, broken = _unusable_stores(stores)
    text = f"{stores}, {format_size(_size_of(stores))}"
    fix = f"the same run goes on with an unfinished one; or {_FIX}" if conversions else _FIX
    return _finding("cache", text, "not whole", (*conversions, *broken), fix)


def temporary() -> Finding:
    """Old folders of commands that were killed."""
    return _finding(
        "temporary", tempfile.gettempdir(), "left by commands that were killed", _old_temporary(), _FIX
    )


def _finding(name: str, text: str, what: str, folders: Iterable[Path], fix: str) -> Finding:
    names = [str(folder) for folder in folders]
    if not names:
        return Finding(name, "ok", text)
    return Finding(name, "warn", f"{text}, {len(names)} {what}: {', '.join(names)}", fix)


def _outcome(folder: Path) -> Finding:
    if folder.exists():
        return Finding("clean", "warn", f"{folder} is still there", f"rm -r {folder}")
    return Finding("clean", "ok", f"removed {folder}")


def _socket_base() -> Path:
    """Where this user's loaders have their socket folders."""
    folder = create_folder()
    remove_folder(folder)
    return folder.parent


def _dead_sockets(base: Path) -> tuple[Path, ...]:
    """Folders whose maker is gone and whose door nobody answers; the maker may be in another container."""
    if not base.is_dir():
        return ()
    living = {door.parent for door in living_doors()}
    gone = [entry for entry in base.iterdir() if entry not in living and _maker_is_gone(entry)]
    return tuple(sorted(gone))


def _maker_is_gone(folder: Path) -> bool:
    pid = folder.name.partition("-")[0]
    return pid.isdecimal() and not Path("/proc", pid).exists()


def _unusable_stores(stores: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """(conversions that nobody goes on with at the moment, stores that are not whole)."""
    if not stores.is_dir():
        return (), ()
    folders = sorted(entry for entry in stores.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    conversions = [entry for entry in folders if entry.name.endswith(PARTIAL_SUFFIX)]
    broken = [entry for entry in folders if entry not in conversions and not _is_whole(entry)]
    return tuple(entry for entry in conversions if _is_idle(entry)), tuple(broken)


def _is_idle(partial: Path) -> bool:
    """Whether no conversion holds the lock; looking leaves nothing behind."""
    try:
        with StorePlace(_store_of(partial)).locked():
            return True
    except (StoreError, OSError):
        return False


def _remove_conversion(partial: Path) -> None:
    try:
        with StorePlace(_store_of(partial)).locked():
            shutil.rmtree(partial, ignore_errors=True)
    except StoreError:
        return  # somebody has just gone on with it: it is no leftover any more


def _store_of(partial: Path) -> Path:
    return partial.with_name(partial.name.removesuffix(PARTIAL_SUFFIX))


def _is_whole(store: Path) -> bool:
    try:
        Manifest.read(store).check_shards(store)
    except SidestageError:
        return False
    return True


def _old_temporary() -> tuple[Path, ...]:
    base = Path(tempfile.gettempdir())
    found = [entry for prefix in _TEMPORARY for entry in base.glob(f"{prefix}*")]
    return tuple(sorted(entry for entry in found if _is_old_and_ours(entry)))


def _is_old_and_ours(entry: Path) -> bool:
    try:
        stat = entry.lstat()
    except FileNotFoundError:
        return False
    return stat.st_uid == os.getuid() and time.time() - stat.st_mtime > _OLD_S


def _size_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
