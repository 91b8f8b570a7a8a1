"""A loader that nobody in the test owns, as `sidestage loader` is: with a folder of the test's choice."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.arena import ArenaGeometry, create_arena_fd
from protocol.child import Child
from protocol.manifest import Manifest


@contextmanager
def standalone_loader(store: Path, folder: Path, num_frames: int, *, num_clients: int = 4) -> Iterator[Child]:
    """A loader with an arena of its own, whose door is `folder / "door"`."""
    stride = Manifest.read(store).layout.stride
    arena_fd = create_arena_fd(ArenaGeometry.for_frames(num_frames, stride, num_clients))
    argv = [sys.executable, "-P", "-m", "loader", "serve", "--store", str(store)]
    argv += ["--arena-fd", str(arena_fd), "--folder", str(folder)]
    try:
        with Child.spawn(argv, name="loader", pass_fds=(arena_fd,)) as child:
            child.wait_ready()
            yield child
    finally:
        os.close(arena_fd)
