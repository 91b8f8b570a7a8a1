"""A pinned transport with no process, no thread and no clock, over a fake device or a real one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Generic, TypeVar, cast

import numpy as np

from compute.client import LoaderClient
from compute.ledger import Completion
from compute.transports.base import Arrivals, Order
from compute.transports.cuda import open_pool
from compute.transports.cuda_link import CudaLink
from compute.transports.driver import Driver
from compute.transports.linked import LinkedTransport
from compute.transports.page_lock import PageLock
from compute.transports.pinned_frames import PinnedFrames
from protocol.arena import Arena, ArenaGeometry, create_arena_fd

NUM_KEYS = 12
BLOB_BYTES = 8192
CHUNK_BYTES = 3000


class StubClient:
    """What a transport needs of its client when no loader is on the path."""

    def __init__(self, quota: int, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.quota = quota
        self.is_closed = False

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True


D = TypeVar("D", bound=Driver)


class PinnedPlay(Generic[D]):
    """Slots as a stage sees them, with the expert that each holds. Frame k of `arena` holds expert k."""

    def __init__(
        self,
        driver: D,
        arena: Arena,
        num_slots: int,
        *,
        timeout_s: float = 20,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.driver = driver
        self.arena = arena
        geometry = arena.geometry
        self.client = StubClient(geometry.num_frames, timeout_s)
        frame_of = {key: Completion(0, key, 0, arena) for key in range(geometry.num_frames)}
        pool = open_pool(driver, num_slots, 0, geometry.frame_bytes)
        lock = PageLock(driver, arena, geometry.num_frames)
        self.transport = LinkedTransport(
            cast(LoaderClient, self.client),
            PinnedFrames(frame_of, {}),
            CudaLink(driver, lock, pool, chunk_bytes=chunk_bytes),
            pool,
            arrangement="pinned",
            num_transit=0,
            chunk_bytes=chunk_bytes,
        )
        self.coming: dict[int, int] = {}
        self.there: dict[int, int] = {}
        self.num_asked = 0
        self.num_ended = 0
        self.clock = 0

    def submit(self, order: Order) -> None:
        for key, slot, *_ in [*order.demand, *order.prefetch]:
            self.coming[slot] = key
            self.num_asked += 1
        self.transport.submit(order, self.clock)

    def settle(self, arrivals: Arrivals) -> None:
        for slot in arrivals.landed:
            key = self.coming.pop(slot)
            self.there[slot] = key
            self.check(slot, key)
        for slot in arrivals.dropped:
            del self.coming[slot]
        self.num_ended += len(arrivals.landed) + len(arrivals.dropped)

    def wait_for_all(self) -> None:
        while self.coming:
            self.settle(self.transport.wait([*self.coming]))

    def check(self, slot: int, key: int) -> None:
        found = self.transport.blob(slot).numpy(force=True).tobytes()
        assert found == expected(key, self.arena.geometry.frame_bytes), "published before its bytes"


@cache
def expected(key: int, num_bytes: int = BLOB_BYTES) -> bytes:
    places = np.arange(num_bytes, dtype=np.uint64)
    return ((key * 37 + places * 11) % 251).astype(np.uint8).tobytes()


@contextmanager
def filled_arena(num_frames: int = NUM_KEYS, frame_bytes: int = BLOB_BYTES) -> Iterator[Arena]:
    """Frame k holds expert k."""
    fd = create_arena_fd(ArenaGeometry.for_frames(num_frames, frame_bytes))
    try:
        with Arena(fd, writable=True) as arena:
            for key in range(num_frames):
                arena.frames[key] = np.frombuffer(expected(key, frame_bytes), np.uint8)
            yield arena
    finally:
        os.close(fd)
