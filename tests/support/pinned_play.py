"""A pinned transport over a fake device, with no process, no thread and no clock: for any order of orders."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import cast

from support.fake_driver import FakeDriver

from compute.client import LoaderClient
from compute.ledger import Completion
from compute.transports.base import Arrivals, Order
from compute.transports.cuda_link import CudaLink
from compute.transports.emulated import aligned_pool
from compute.transports.linked import LinkedTransport
from compute.transports.page_lock import PageLock
from compute.transports.pinned_frames import PinnedFrames
from protocol.arena import Arena, ArenaGeometry, create_arena_fd

NUM_KEYS = 12
BLOB_BYTES = 8192
CHUNK_BYTES = 3000


class StubClient:
    """What a transport needs of its client when no loader is on the path."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.quota = NUM_KEYS
        self.is_closed = False

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True


class PinnedPlay:
    """Slots as a stage sees them, with the last bytes that each should hold."""

    def __init__(self, driver: FakeDriver, arena: Arena, num_slots: int, timeout_s: float = 20) -> None:
        self.driver = driver
        self.arena = arena
        self.client = StubClient(timeout_s)
        frame_of = {key: Completion(0, key, 0, arena) for key in range(NUM_KEYS)}
        lock = PageLock(driver, arena, arena.geometry.num_frames)
        pool = aligned_pool(num_slots, BLOB_BYTES)
        self.link = CudaLink(driver, lock, pool, chunk_bytes=CHUNK_BYTES)
        self.frames = PinnedFrames(frame_of, {})
        self.transport = LinkedTransport(
            cast(LoaderClient, self.client),
            self.frames,
            self.link,
            pool,
            arrangement="pinned",
            num_transit=0,
            chunk_bytes=CHUNK_BYTES,
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
            assert bytes(self.transport.blob(slot).numpy()) == expected(key), "published before its bytes"
        for slot in arrivals.dropped:
            del self.coming[slot]
        self.num_ended += len(arrivals.landed) + len(arrivals.dropped)

    def wait_for_all(self) -> None:
        while self.coming:
            self.settle(self.transport.wait([*self.coming]))


@cache
def expected(key: int) -> bytes:
    return bytes((key * 37 + place * 11) % 251 for place in range(BLOB_BYTES))


@contextmanager
def filled_arena() -> Iterator[Arena]:
    """Frame k holds expert k."""
    fd = create_arena_fd(ArenaGeometry.for_frames(NUM_KEYS, BLOB_BYTES))
    try:
        with Arena(fd, writable=True) as arena:
            for key in range(NUM_KEYS):
                arena.frames[key] = list(expected(key))
            yield arena
    finally:
        os.close(fd)
