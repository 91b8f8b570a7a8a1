"""What the way to a device costs the host: `pytest -m bench -s` prints it. A driver that does nothing."""

import time

import pytest
import torch
from support.pinned_play import PinnedPlay, filled_arena

from compute.transports.base import Order
from compute.transports.cuda_link import CHUNK_BYTES

pytestmark = pytest.mark.bench

NUM_FRAMES = 16
NUM_ORDERS = 2000


class DoneAtOnce:
    def is_done(self) -> bool:
        return True


class IdleDriver:
    """Every copy has crossed when it is asked about."""

    device = torch.device("cpu")
    name = "an idle driver"

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        pass

    def mark_copies(self) -> DoneAtOnce:
        return DoneAtOnce()

    def mark_uses(self) -> DoneAtOnce:
        return DoneAtOnce()

    def hold_copies(self, until: object) -> None:
        pass

    def elapsed_ns(self, start: object, end: object) -> int:
        return 100_000

    def page_lock(self, address: int, num_bytes: int) -> None:
        pass

    def page_unlock(self, address: int) -> None:
        pass

    def reads_in_place(self) -> bool:
        return True

    def memory(self) -> tuple[int, int]:
        return 2**40, 2**40


@pytest.mark.parametrize("num_experts", [1, 2, 4, 8])
def test_host_time_of_an_order(num_experts: int) -> None:
    """CPU time of the compute thread from `submit` to the last landing, the driver's calls left out."""
    with filled_arena(NUM_FRAMES, 2**20) as arena:
        play = PinnedPlay(IdleDriver(), arena, num_experts, chunk_bytes=CHUNK_BYTES)
        play.transport.start()
        try:
            _orders(play, NUM_ORDERS // 10)
            started_s = time.thread_time()
            _orders(play, NUM_ORDERS)
            used_us = (time.thread_time() - started_s) / NUM_ORDERS * 1e6
        finally:
            play.transport.close()
    print(f"{num_experts} experts an order: {used_us:.1f} us")
    assert play.num_asked == num_experts * (NUM_ORDERS + NUM_ORDERS // 10)


def _orders(play: PinnedPlay[IdleDriver], count: int) -> None:
    for number in range(count):
        evicted = [(key, slot) for slot, key in play.there.items()]
        play.there.clear()
        slots = range(len(play.transport.pool))
        play.submit(Order(evicted=evicted, demand=[((number + slot) % NUM_FRAMES, slot) for slot in slots]))
        while play.coming:
            for slot in play.transport.wait([*play.coming]).landed:
                play.there[slot] = play.coming.pop(slot)
