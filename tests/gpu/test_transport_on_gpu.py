"""The transport on a real device: ordering under load, bytes, speed, and memory that runs out."""

import random
from collections.abc import Iterator

import pytest
import torch
from support.link_race import transport_speed
from support.pinned_play import PinnedPlay, expected, filled_arena

from compute.link_probe import measure_link
from compute.transports.base import Order
from compute.transports.cuda import open_pool
from compute.transports.cuda_driver import CudaDriver
from protocol.arena import Arena
from protocol.errors import MemoryBudgetError

pytestmark = pytest.mark.gpu

NUM_KEYS = 12
BLOB_BYTES = 3 * 2**20
CHUNK_BYTES = 2**20
NUM_SLOTS = 4


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with filled_arena(NUM_KEYS, BLOB_BYTES) as arena:
        yield arena


@pytest.fixture
def play(driver: CudaDriver, arena: Arena) -> Iterator[PinnedPlay[CudaDriver]]:
    play = PinnedPlay(driver, arena, NUM_SLOTS, chunk_bytes=CHUNK_BYTES)
    play.transport.start()
    yield play
    play.transport.close()


def test_a_slow_read_sees_the_old_expert_and_a_later_one_the_new(play: PinnedPlay[CudaDriver]) -> None:
    """Compute is kept behind the host, so that every refill meets reads that are still to come."""
    rng = random.Random(7)
    seen: list[tuple[int, torch.Tensor]] = []
    play.submit(Order(demand=[(key, key) for key in range(NUM_SLOTS)]))
    while play.coming:
        play.settle(play.transport.wait([*play.coming]))
    for _ in range(60):
        slot = rng.randrange(NUM_SLOTS)
        torch.cuda._sleep(2_000_000)
        seen.append((play.there[slot], play.transport.blob(slot)[::4096].clone()))
        order = Order(evicted=[(play.there.pop(slot), slot)], demand=[(rng.randrange(NUM_KEYS), slot)])
        play.submit(order)
        while play.coming:
            for landed in play.transport.wait([*play.coming]).landed:
                play.there[landed] = play.coming.pop(landed)
    for key, sample in seen:
        assert sample.cpu().numpy().tobytes() == expected(key, BLOB_BYTES)[::4096], f"expert {key} was torn"


def test_promotions_and_cancellations_leave_whole_experts(play: PinnedPlay[CudaDriver]) -> None:
    rng = random.Random(3)
    for step in range(200):
        free = [slot for slot in range(NUM_SLOTS) if slot not in play.coming and slot not in play.there]
        order = Order()
        for slot in list(play.there)[: rng.randrange(3)]:
            order.evicted.append((play.there.pop(slot), slot))
        for slot in play.coming:
            rng.choice([order.cancel, order.promote, []]).append(slot)
        order.prefetch.extend((rng.randrange(NUM_KEYS), slot, step + rng.randrange(4)) for slot in free)
        play.clock = step
        play.submit(order)
        play.settle(play.transport.poll())
    while play.coming:
        play.settle(play.transport.wait([*play.coming]))
    assert play.num_ended == play.num_asked


def test_the_links_busy_time_is_no_more_than_the_time_that_passed(play: PinnedPlay[CudaDriver]) -> None:
    play.submit(Order(demand=[(key, key) for key in range(NUM_SLOTS)]))
    while play.coming:
        play.settle(play.transport.wait([*play.coming]))
    stats = play.transport.stats()
    assert 0 < stats["link_busy_ns"] <= stats["link_open_ns"]
    assert stats["bytes_transferred"] == NUM_SLOTS * BLOB_BYTES


def test_everything_is_unlocked_at_the_end(driver: CudaDriver, arena: Arena) -> None:
    for _ in range(3):
        PinnedPlay(driver, arena, NUM_SLOTS, chunk_bytes=CHUNK_BYTES).transport.close()


def test_more_slots_than_the_device_holds_are_refused_with_the_number_that_fits(driver: CudaDriver) -> None:
    _, total = driver.memory()
    with pytest.raises(MemoryBudgetError, match=r"\d+ slots would fit, pass --slots"):
        open_pool(driver, 2 * total // 2**20, 3, 2**20)
    assert torch.ones(4, device=driver.device).sum().item() == 4


@pytest.mark.bench
@pytest.mark.parametrize("blob_bytes", [2_654_208, 14 * 2**20])
def test_the_link_reaches_95_percent_of_the_best_page_locked_copy(
    driver: CudaDriver, blob_bytes: int
) -> None:
    best = measure_link(driver).best
    reached = max(transport_speed(driver, blob_bytes, 2**31 // blob_bytes) for _ in range(3))
    print(f"{blob_bytes} bytes a blob: {reached / 1e9:.2f} GB/s of {best / 1e9:.2f}, {reached / best:.3f}")
    assert reached >= 0.95 * best
