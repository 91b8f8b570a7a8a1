"""A pidfd, and the pipe that stands in for it where the kernel has none."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from compute.loader_process import start_loader
from protocol import arena
from protocol.arena import Arena, ArenaGeometry, create_arena_fd
from protocol.pidfd import is_dead, is_readable, open_pidfd


def _no_pidfd(pid: int, flags: int = 0) -> int:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.fixture(params=["pidfd", "pipe"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pipe":
        monkeypatch.setattr(os, "pidfd_open", _no_pidfd)


@contextmanager
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        try:
            yield process
        finally:
            process.kill()


def test_it_tells_the_end_of_a_process_that_nobody_has_reaped(kernel: None) -> None:
    with sleeper() as process:
        fd = open_pidfd(process.pid)
        assert not is_dead(fd)
        process.kill()
        assert is_readable([fd], 20) and is_dead(fd)
        os.close(fd)


def test_a_process_that_is_gone_is_told_at_once(kernel: None) -> None:
    with sleeper() as process:
        pass
    with pytest.raises(ProcessLookupError):
        open_pidfd(process.pid)


def test_nobody_watches_for_a_reader_who_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pidfd_open", _no_pidfd)
    os.close(open_pidfd(os.getpid()))
    for thread in threading.enumerate():
        if thread.name == f"watch {os.getpid()}":
            thread.join(timeout=20)
            assert not thread.is_alive()


def test_a_loader_is_started_and_stopped_without_pidfds(
    store_4bit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pidfd_open", _no_pidfd)
    with start_loader(store_4bit, num_frames=8, timeout_s=60) as loader:
        fd = open_pidfd(loader.pid)
    assert is_readable([fd], 20)
    os.close(fd)


def test_an_arena_is_filled_by_hand_where_the_kernel_does_not_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "_MADV_POPULATE_WRITE", 9999)  # no kernel knows it
    fd = create_arena_fd(ArenaGeometry.for_frames(2, 4096))
    with Arena(fd, writable=True) as made:
        made.frames[1, 5] = 7
        made.populate()
        assert made.frames[1, 5] == 7 and not made.frames[0].any()
    os.close(fd)
