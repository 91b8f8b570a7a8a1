"""Benchmark: how fast experts get from a file into frames, past the page cache and through it.

Cold: the page cache has been told to forget the file. Beside it memcpy and the checksum alone.
GB/s of the clock on the wall, and seconds of processor time for each GB.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import xxhash
from support.synthetic_store import make_store

from loader.direct_io import find_obstacle
from loader.store_files import Bytes, StoreFiles
from protocol.arena import Arena, ArenaGeometry, create_arena_fd
from protocol.manifest import Manifest

pytestmark = pytest.mark.bench

#: Experts of OLMoE-1B-7B and of the shipped model, and how many of them.
SIZES = {3456: 64, 24: 512}
THREADS = (1, 2, 4, 8)


@pytest.mark.parametrize("kib", SIZES)
def test_filling_frames(tmp_path: Path, kib: int) -> None:
    manifest = make_store(tmp_path / "store", 1, SIZES[kib], 2, stride_kib=kib)
    fd = create_arena_fd(ArenaGeometry.for_frames(SIZES[kib], manifest.layout.stride))
    with Arena(fd, writable=True) as arena:
        arena.populate()
        print(f"\nexperts of {kib} KiB{'':14} GB/s    CPU s/GB")
        _tell("memcpy", _timed(manifest, 1, _copier(arena)))
        _tell("checksum alone", _timed(manifest, 1, lambda key: _checksum(arena.frames[key])))
        for is_direct, is_cold in ((True, True), (False, True), (False, False)):
            if is_direct and find_obstacle(tmp_path / "store", manifest):
                continue
            for num_threads in THREADS:
                how = "direct" if is_direct else "page cache, cold" if is_cold else "page cache, warm"
                _tell(
                    f"{how}, {num_threads} threads",
                    _read(tmp_path, manifest, arena, is_direct, is_cold, num_threads),
                )
    os.close(fd)


def _read(
    folder: Path, manifest: Manifest, arena: Arena, is_direct: bool, is_cold: bool, num_threads: int
) -> tuple[float, float]:
    if is_cold:
        _forget(folder / "store", manifest)
    with closing(StoreFiles(folder / "store", manifest, True, is_direct=is_direct)) as files:
        return _timed(manifest, num_threads, lambda key: files.read(key, arena.frames[key]))


def _timed(manifest: Manifest, num_threads: int, do: Callable[[int], None]) -> tuple[float, float]:
    """(GB/s, CPU seconds a GB) of doing it for every key."""
    gigabytes = manifest.expert_bytes_total / 1e9
    with ThreadPoolExecutor(num_threads) as threads:
        list(threads.map(abs, repeat(0, num_threads)))
        cpu_s, started = time.process_time(), time.perf_counter()
        list(threads.map(do, range(manifest.num_keys)))
        wall_s = time.perf_counter() - started
        return gigabytes / wall_s, (time.process_time() - cpu_s) / gigabytes


def _copier(arena: Arena) -> Callable[[int], None]:
    source: Bytes = np.ones(arena.geometry.frame_bytes, np.uint8)
    return lambda key: np.copyto(arena.frames[key], source)


def _checksum(frame: Bytes) -> None:
    xxhash.xxh3_64_intdigest(frame.data)


def _forget(store: Path, manifest: Manifest) -> None:
    for shard in manifest.shards:
        fd = os.open(store / shard.file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def _tell(name: str, figures: tuple[float, float]) -> None:
    print(f"{name:32} {figures[0]:6.2f} {figures[1]:8.3f}")
    assert figures[0] > 0
