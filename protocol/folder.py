"""The folder in which a loader's sockets lie: private, short enough, and gone when nobody needs it.

`$XDG_RUNTIME_DIR/sidestage/<pid>-<random>/`, else `<tmp>/sidestage-<uid>/<pid>-<random>/`, mode
0700 and ours. Holds only the sockets `door` and `bus`; knows nothing of what they say.
"""

import contextlib
import os
import secrets
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

DOOR_NAME = "door"
BUS_NAME = "bus"
#: The longest path that a Unix socket's address holds, in bytes.
MAX_SOCKET_PATH = 107

_YOUNG_S = 60.0


def create_folder() -> Path:
    """A new private folder for one loader's sockets. Whoever asked removes it (`remove_folder`).

    Removes, on the way, folders that crashed processes of this user left behind.
    Raises ValueError when no place is private and short enough.
    """
    name = f"{os.getpid()}-{secrets.token_hex(4)}"
    refusals = []
    for base in _bases():
        try:
            _create_within(base, name)
        except (OSError, ValueError) as error:
            refusals.append(f"{base}: {error}")
            continue
        return base / name
    raise ValueError(
        f"no place for the loader's sockets ({'; '.join(refusals)}): "
        f"set XDG_RUNTIME_DIR to a short path of yours"
    )


def prepare_folder(folder: Path) -> None:
    """Make `folder` when it is missing; refuse one that others may enter or whose path is too long.

    Raises ValueError.
    """
    length = len(os.fsencode(folder / DOOR_NAME))
    if length > MAX_SOCKET_PATH:
        raise ValueError(
            f"the socket path {folder / DOOR_NAME} has {length} bytes, {MAX_SOCKET_PATH} are allowed: "
            f"choose a shorter folder"
        )
    _make_private(folder)


def remove_folder(folder: Path) -> None:
    """Remove the sockets and then the folder, unless something foreign lies in it. Idempotent."""
    for name in (DOOR_NAME, BUS_NAME):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
        if folder.parent.name.startswith("sidestage"):
            folder.parent.rmdir()  # the last one out; fails while others are in


def living_doors() -> list[Path]:
    """The doors of this user's loaders that run, in the first place that holds any."""
    for base in _bases():
        if base.is_dir() and base.lstat().st_uid == os.getuid():
            folders = sorted(folder for folder in base.glob("*-*") if (folder / DOOR_NAME).is_socket())
            if living := [folder / DOOR_NAME for folder in folders if not _is_deserted(folder)]:
                return living
    return []


def remove_stale_folders(base: Path) -> None:
    """Remove folders of dead processes: the maker is gone and nobody answers at the door."""
    for folder in base.iterdir():
        pid = folder.name.partition("-")[0]
        if pid.isdecimal() and not Path("/proc", pid).exists() and _is_deserted(folder):
            remove_folder(folder)


def _bases() -> Iterator[Path]:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isabs(runtime) and os.access(runtime, os.W_OK):
        yield Path(runtime) / "sidestage"
    for temporary in dict.fromkeys((tempfile.gettempdir(), "/tmp")):
        yield Path(temporary) / f"sidestage-{os.getuid()}"
    yield Path("/tmp") / f"sidestage-{os.getuid()}-{secrets.token_hex(4)}"


def _create_within(base: Path, name: str) -> None:
    _make_private(base)
    with contextlib.suppress(FileNotFoundError):
        remove_stale_folders(base)
        _make_private(base)
        prepare_folder(base / name)
        return
    _make_private(base)  # somebody, the last one out, had just removed it
    prepare_folder(base / name)


def _make_private(folder: Path) -> None:
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ValueError(f"{folder} is not a folder of user {os.getuid()}: choose another")
    if found.st_mode & 0o077:
        raise ValueError(f"{folder} is open to others (mode {found.st_mode & 0o777:o}): chmod it to 700")


def _is_deserted(folder: Path) -> bool:
    """Nobody listens at the folder's door. The maker may live in another pid namespace: ask, don't guess."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            probe.settimeout(0.1)
            probe.connect(os.fspath(folder / DOOR_NAME))
            return False
    except ConnectionRefusedError:
        return True
    except FileNotFoundError:
        with contextlib.suppress(FileNotFoundError):
            return time.time() - folder.lstat().st_mtime > _YOUNG_S
        return False
    except OSError:
        return False


def refuse_network(endpoint: str | os.PathLike[str]) -> None:
    """Raises ValueError for an address like tcp://host:port: shared memory cannot be handed over there."""
    scheme, separator, _ = os.fspath(endpoint).partition("://")
    if separator:
        raise ValueError(
            f"endpoint {os.fspath(endpoint)}: {scheme} is refused, for a loader hands its experts over as "
            "shared memory, to processes of its own user on its own machine; give the path that "
            "`sidestage loader` prints"
        )
