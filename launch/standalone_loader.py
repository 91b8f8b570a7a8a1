"""`sidestage loader`: one loader that stands alone, in this process, until Ctrl-C.

Owns its arena and its socket folder. An `--endpoint` of the user's is a link to the door in that
folder, so that any path will do.
"""

import contextlib
import json as json_text
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from compute.budget import Asked, plan_budget
from launch.log import log_to_stderr
from launch.output import check_place, write_json
from loader.source import CONFIG_FILE, is_store
from protocol.arena import MAX_FRAMES, ArenaGeometry, available_memory_bytes, create_arena_fd
from protocol.door import enter
from protocol.errors import LoaderLostError, SidestageError, StoreError
from protocol.folder import DOOR_NAME, MAX_SOCKET_PATH, create_folder, refuse_network, remove_folder
from protocol.manifest import Manifest
from protocol.messages import PROTOCOL_VERSION, Knock

_PROBE_TIMEOUT_S = 1.0


def serve_store(
    store: str, *, ram: int | None, endpoint: str | None, direct_io: str, json: str | None
) -> None:
    """Serve `store` and say where, once clients may come. Raises SidestageError or ValueError."""
    log_to_stderr("%(asctime)s %(message)s")
    check_place("--json", json)
    if endpoint is not None:
        refuse_network(endpoint)
    folder = Path(store).expanduser()
    manifest = _manifest(folder)
    num_frames = frames_for(manifest, ram, available_memory_bytes())
    geometry = ArenaGeometry.for_frames(num_frames, manifest.layout.stride)
    from loader.options import ServeOptions
    from loader.service import serve

    with ExitStack() as opened:
        arena_fd = create_arena_fd(geometry)
        opened.callback(os.close, arena_fd)
        sockets = create_folder()
        opened.callback(remove_folder, sockets)
        if endpoint is not None:
            opened.enter_context(_linked(Path(endpoint), sockets / DOOR_NAME))
        announcement = _Announcement(endpoint or str(sockets / DOOR_NAME), folder.resolve(), json)
        opened.enter_context(_hangup_stops())
        serve(ServeOptions(folder, arena_fd, sockets, direct_io=direct_io), on_ready=announcement.make)


def frames_for(manifest: Manifest, ram: int | None, free_bytes: int) -> int:
    """How many frames a loader gets: what `ram` holds, else every expert if that is half of what is free.

    More frames than experts are of use: clients reserve theirs, each for itself.
    Raises MemoryBudgetError.
    """
    asked = Asked(arrangement="direct", ram=ram, slots=None, free_bytes=free_bytes)
    least = plan_budget(manifest, asked).num_frames
    if ram is None:
        return least
    return min(max(least, ram // manifest.layout.stride), MAX_FRAMES)


@dataclass(frozen=True, slots=True)
class _Announcement:
    """Says once that the loader is ready: as JSON, or as a line with the endpoint."""

    endpoint: str
    store: Path
    json: str | None

    def make(self, facts: dict[str, object]) -> None:
        """`facts` are the service's."""
        told = {
            "endpoint": self.endpoint,
            "store": str(self.store),
            "frames": facts["num_frames"],
            "pid": facts["pid"],
            "fingerprint": facts["store"],
            "reads": facts["reads"],
        }
        if self.json is not None:
            write_json(self.json, json_text.dumps(told))
        if self.json != "-":
            sys.stdout.write(self.endpoint + "\n")
            sys.stdout.flush()
        sys.stderr.write(f"{facts['num_frames']} frames; experts are read {facts['reads']}; Ctrl-C stops\n")


def _manifest(store: Path) -> Manifest:
    if not store.is_dir():
        raise StoreError(f"there is no store {store}: name the folder that `sidestage convert` wrote")
    if not is_store(store) and (store / CONFIG_FILE).is_file():
        raise StoreError(f"{store} is a checkpoint, not a store: `sidestage convert {store} STORE` makes one")
    manifest = Manifest.read(store)
    manifest.check_shards(store)
    return manifest


@contextlib.contextmanager
def _linked(endpoint: Path, door: Path) -> Iterator[None]:
    """`endpoint` leads to `door`. Raises ValueError when the place is taken."""
    _check_endpoint(endpoint)
    if endpoint.is_symlink():
        endpoint.unlink()
    endpoint.symlink_to(door)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            if endpoint.readlink() == door:
                endpoint.unlink()


def _check_endpoint(endpoint: Path) -> None:
    if len(os.fsencode(endpoint)) > MAX_SOCKET_PATH:
        raise ValueError(
            f"--endpoint has {len(os.fsencode(endpoint))} bytes, a socket's path holds {MAX_SOCKET_PATH}"
        )
    if not endpoint.absolute().parent.is_dir():
        raise ValueError(f"--endpoint {endpoint}: the folder {endpoint.absolute().parent} does not exist")
    if endpoint.is_symlink():
        if _answers(endpoint):
            raise ValueError(f"--endpoint {endpoint} belongs to a loader that runs: choose another path")
    elif endpoint.exists():
        raise ValueError(f"--endpoint {endpoint} is there already and is no loader's: choose another path")


def _answers(endpoint: Path) -> bool:
    """Whether a loader stands behind the link; one that is left from a crash leads nowhere."""
    knock = Knock(PROTOCOL_VERSION, 1, "no store", "message", -1)
    try:
        enter(endpoint, knock, _PROBE_TIMEOUT_S)
    except LoaderLostError:
        return False
    except SidestageError:
        return True  # whatever it says, somebody is there
    return True


@contextlib.contextmanager
def _hangup_stops() -> Iterator[None]:
    """A closed terminal ends the loader as cleanly as Ctrl-C does."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGHUP, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
