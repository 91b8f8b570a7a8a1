"""How fast a store's experts can be read, by as many threads as a loader has: the W of the bounds.

Reads whole experts in random order as the loader does; from the disk or from the page cache,
whichever the system chooses.
"""

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from protocol.manifest import Manifest

NUM_THREADS = 2
_MOST_BYTES = 512 * 2**20


def read_bytes_per_s(store: Path, manifest: Manifest) -> float:
    """Bytes a second over at most 512 MiB of experts."""
    stride = manifest.layout.stride
    keys = list(range(manifest.num_keys))
    random.Random(0).shuffle(keys)
    keys = keys[: max(NUM_THREADS, _MOST_BYTES // stride)]
    shares = [keys[first::NUM_THREADS] for first in range(NUM_THREADS)]
    buffers = [np.ones(stride, np.uint8) for _ in shares]
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        started = time.perf_counter()
        for reading in [threads.submit(_read, store, manifest, *each) for each in zip(shares, buffers)]:
            reading.result()
        return len(keys) * stride / (time.perf_counter() - started)


def _read(
    store: Path, manifest: Manifest, keys: list[int], buffer: "np.ndarray[tuple[int], np.dtype[np.uint8]]"
) -> None:
    stride = manifest.layout.stride
    fds = [os.open(store / shard.file, os.O_RDONLY | os.O_CLOEXEC) for shard in manifest.shards]
    try:
        for key in keys:
            number = next(n for n, s in enumerate(manifest.shards) if key < s.first_key + s.num_experts)
            shard = manifest.shards[number]
            os.preadv(fds[number], [buffer.data], shard.data_offset + (key - shard.first_key) * stride)
    finally:
        for fd in fds:
            os.close(fd)
