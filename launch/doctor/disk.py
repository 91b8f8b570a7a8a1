"""How fast the disk of the cache folder is read: past the page cache, and out of it.

A loader that reads its store for the first time sees the first speed, later perhaps the second.
"""

import contextlib
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from compute.cache_folder import cache_home
from launch.doctor.finding import Finding
from loader.direct_io import obstacle_in
from protocol.units import format_size

_FILE_BYTES = 32 * 2**20
#: As much as a large expert; O_DIRECT wants whole sectors and an aligned place, which a mapping is.
_READ_BYTES = 2 * 2**20
_LEAST_FREE = 2**30
_SLOW = 200e6


def findings() -> Iterator[Finding]:
    yield disk_speed(cache_home())


def disk_speed(folder: Path) -> Finding:
    """Writes and removes a file of 32 MiB in `folder`, or in the next folder above that there is."""
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    room = f"{folder}, {format_size(free)} free"
    if free < _LEAST_FREE:
        return Finding("disk", "warn", room, "free some, or set XDG_CACHE_HOME to a folder on another disk")
    try:
        past, cached = _speeds(folder)
    except OSError as error:
        return Finding(
            "disk", "warn", f"{room}; its speed is not known ({error.strerror})", "try another folder"
        )
    return speed_finding(room, past, cached)


def speed_finding(room: str, past: float, cached: float) -> Finding:
    """Speeds in bytes a second: past the page cache, and out of it."""
    text = f"{room}; {past / 1e9:.2f} GB/s from the disk, {cached / 1e9:.2f} GB/s from the page cache"
    if past < _SLOW:
        fix = "pass a --ram that holds every expert, or set XDG_CACHE_HOME to a folder on a faster disk"
        return Finding("disk", "warn", text, fix)
    return Finding("disk", "ok", text)


def _speeds(folder: Path) -> tuple[float, float]:
    with tempfile.NamedTemporaryFile(prefix=".sidestage-doctor-", dir=folder) as file:
        block = os.urandom(_READ_BYTES)
        for _ in range(_FILE_BYTES // _READ_BYTES):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        past = _rate_past_the_cache(Path(file.name))
        with _opened(Path(file.name)) as fd:
            _rate(fd)  # so that the next one finds it in the page cache
            return past, _rate(fd)


def _rate_past_the_cache(file: Path) -> float:
    """Where the file system has no direct reads, what it has cached is dropped first."""
    if not obstacle_in(file):
        with _opened(file, os.O_DIRECT) as fd:
            return _rate(fd)
    with _opened(file) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return _rate(fd)


@contextlib.contextmanager
def _opened(file: Path, flags: int = 0) -> Iterator[int]:
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        yield fd
    finally:
        os.close(fd)


def _rate(fd: int) -> float:
    """Bytes a second of reading all of it, one block after the other."""
    with mmap.mmap(-1, _READ_BYTES) as block:
        started = time.perf_counter()
        total = 0
        while num_read := os.preadv(fd, [block], total):
            total += num_read
        return total / max(time.perf_counter() - started, 1e-9)
