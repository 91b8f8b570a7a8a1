"""How fast a store's experts can be read, by as many threads as a loader has: the W of the bounds.

Reads whole experts in random order, the way that the loader reads them and into pages of the same
alignment, without looking at what they are.
"""

import mmap
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np

from loader.store_files import Bytes, StoreFiles
from protocol.manifest import Manifest

NUM_THREADS = 2
_MOST_BYTES = 512 * 2**20


def read_bytes_per_s(
    store: Path, manifest: Manifest, is_direct: bool, num_threads: int = NUM_THREADS
) -> float:
    """Bytes a second over at most 512 MiB of experts."""
    stride = manifest.layout.stride
    keys = list(range(manifest.num_keys))
    random.Random(0).shuffle(keys)
    keys = keys[: max(num_threads, _MOST_BYTES // stride)]
    shares = [keys[first::num_threads] for first in range(num_threads)]
    frames = [_frame(stride) for _ in shares]
    with (
        closing(StoreFiles(store, manifest, verify=False, is_direct=is_direct)) as files,
        ThreadPoolExecutor(num_threads) as threads,
    ):
        started = time.perf_counter()
        for reading in [threads.submit(_read, files, *each) for each in zip(shares, frames)]:
            reading.result()
        return len(keys) * stride / (time.perf_counter() - started)


def _frame(stride: int) -> Bytes:
    """uint8 [stride] of whole pages that are there."""
    frame = np.frombuffer(mmap.mmap(-1, stride), np.uint8)
    frame.fill(1)
    return frame


def _read(files: StoreFiles, keys: list[int], frame: Bytes) -> None:
    for key in keys:
        files.read(key, frame)
