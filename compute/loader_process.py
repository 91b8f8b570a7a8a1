"""A loader of our own: the arena, the folder and the process that an embedding client starts.

Holds the arena's memfd, so that a loader that dies loses no frame: its successor gets the same
one. Knows nothing of what clients ask.
"""

import os
import sys
import threading
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from compute.patience import timeout_setting
from protocol.arena import H_TURNS, ArenaGeometry, create_arena_fd
from protocol.child import Child
from protocol.folder import create_folder, remove_folder
from protocol.manifest import Manifest

#: A fresh arena is populated before the loader is ready: this much a second, on a slow machine.
_POPULATE_BYTES_PER_S = 256 * 2**20
#: A successor finds the arena's pages in place: one that takes longer to come up hangs.
_RESTART_S = 10.0


def start_loader(
    store: Path,
    *,
    num_frames: int,
    threads: int = 2,
    num_clients: int = 1,
    timeline: Path | None = None,
    rate: int | None = None,
    direct_io: str = "auto",
    timeout_s: float | None = None,
) -> "OwnedLoader":
    """A loader process that serves `store` from `num_frames` frames; it is ready on return.

    `threads` read the store, at most `rate` bytes a second when given; `timeline` is the file for
    its spans; `direct_io` "auto", "on" or "off": past the page cache. Raises StoreError,
    MemoryBudgetError, or SidestageError with the loader's sentence.
    """
    manifest = Manifest.read(store)
    geometry = ArenaGeometry.for_frames(num_frames, manifest.layout.stride, num_clients)
    options = ["--store", os.fspath(store.absolute()), "--threads", str(threads), "--direct-io", direct_io]
    if timeline is not None:
        options += ["--timeline", os.fspath(timeline.absolute())]
    if rate is not None:
        options += ["--rate", f"{rate}B/s"]
    return OwnedLoader(geometry, options, timeout_setting(timeout_s))


class OwnedLoader:
    """One loader process at a time. `endpoint` stays the same over restarts."""

    def __init__(self, geometry: ArenaGeometry, options: list[str], timeout_s: float) -> None:
        self.geometry = geometry
        self.num_restarts = 0
        self._options = options
        self._timeout_s = timeout_s
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._is_closed = False
        with ExitStack() as opened:
            self.arena_fd = create_arena_fd(geometry)
            opened.callback(os.close, self.arena_fd)
            self.folder = create_folder()
            opened.callback(remove_folder, self.folder)
            populate_s = geometry.total_bytes / _POPULATE_BYTES_PER_S
            self._child, facts = self._spawn(timeout_s + populate_s)
            opened.callback(lambda: self._child.close())
            self.endpoint = str(facts["endpoint"])
            #: The fingerprint of the store that is served.
            self.store = str(facts["store"])
            self._opened = opened.pop_all()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def is_alive(self) -> bool:
        return self._child.poll() is None

    @property
    def turns(self) -> int:
        """How often the loader's loop has gone round: a loader in which it stands still is hung."""
        return int.from_bytes(os.pread(self.arena_fd, 8, 8 * H_TURNS), sys.byteorder)

    @property
    def progress(self) -> int:
        """A number that changes when a client's ticket ends, in whatever way."""
        geometry = self.geometry
        num_bytes = geometry.num_clients * geometry.num_tickets * 8
        return zlib.crc32(os.pread(self.arena_fd, num_bytes, geometry.completions_offset))

    def restart(self) -> None:
        """Kill and reap the loader, dead, hung or well, and start another on the same arena.

        Raises SidestageError with the new loader's sentence when it does not come up.
        """
        with self._lock:
            if self._is_closed or os.getpid() != self._owner:
                raise RuntimeError("only an open loader can be restarted, by the process that started it")
            self._child.close(timeout_s=0.0)
            self._child, _ = self._spawn(min(self._timeout_s, _RESTART_S))
            self.num_restarts += 1

    def close(self) -> None:
        """Stop the loader, then remove its folder and close the arena. Idempotent; nothing in a fork."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            self._is_closed = True
            self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _spawn(self, ready_timeout_s: float) -> tuple[Child, dict[str, object]]:
        # A loader that stops in order removes its folder, and the folder's folder when it was the last.
        self.folder.parent.mkdir(mode=0o700, exist_ok=True)
        arena = ["--arena-fd", str(self.arena_fd), "--folder", os.fspath(self.folder)]
        child = Child.spawn(
            [sys.executable, "-P", "-m", "loader", "serve", *self._options, *arena],
            name="the loader",
            pass_fds=(self.arena_fd,),
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            ready_timeout_s=ready_timeout_s,
        )
        try:
            return child, child.wait_ready()
        except BaseException:
            child.close(timeout_s=0.0)
            raise
