"""What a device must never see, whatever is ordered: the cuda link over a fake device, in virtual time."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fake_driver import FakeDriver
from support.pinned_play import CHUNK_BYTES, NUM_KEYS, PinnedPlay, filled_arena

from compute.transports.base import Order
from protocol.arena import Arena
from protocol.errors import LoaderLostError, ProtocolError

NUM_SLOTS = 5
#: One chunk takes this much virtual time at the default rate.
CHUNK_NS = 3000


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with filled_arena() as arena:
        yield arena


def play_on(
    arena: Arena, driver: FakeDriver | None = None, num_slots: int = NUM_SLOTS
) -> PinnedPlay[FakeDriver]:
    return PinnedPlay(driver or FakeDriver(tick_ns=500), arena, num_slots)


def one_step(play: PinnedPlay[FakeDriver], numbers: list[int]) -> None:
    """One order made of `numbers`, each of which becomes something that a stage may ask for or do."""
    play.clock += 1
    order = Order()
    free = [slot for slot in range(NUM_SLOTS) if slot not in play.coming and slot not in play.there]
    on_the_way = sorted(play.coming)
    for number in numbers:
        what, choice = number % 6, number // 6
        if what == 0 and play.there:
            slot = sorted(play.there)[choice % len(play.there)]
            order.evicted.append((play.there.pop(slot), slot))
            free.append(slot)
        elif what in (1, 2) and on_the_way:
            slot = on_the_way.pop(choice % len(on_the_way))
            (order.cancel if what == 1 else order.promote).append(slot)
        elif what in (3, 4) and free:
            key, slot = choice % NUM_KEYS, free.pop()
            if what == 3:
                order.demand.append((key, slot))
            else:
                order.prefetch.append((key, slot, play.clock + choice % 4))
        elif what == 5 and play.there:
            slot = sorted(play.there)[choice % len(play.there)]
            play.driver.read(play.transport.blob(slot), lasts_ns=choice % 7 * 2000)
    play.submit(order)
    play.driver.tick(sum(numbers) % 5)
    play.settle(play.transport.poll())


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(st.lists(st.integers(0, 251), max_size=10), max_size=30))
def test_no_order_of_orders_reads_half_a_slot_or_loses_one(arena: Arena, steps: list[list[int]]) -> None:
    play = play_on(arena)
    try:
        for numbers in steps:
            one_step(play, numbers)
        play.wait_for_all()
        assert play.num_ended == play.num_asked, "every fetch ends once"
        assert play.driver.most_in_flight <= 2
        assert play.driver.num_unlocked_sources == 0
    finally:
        play.transport.close()
    assert not play.driver.locked and play.client.is_closed


def test_a_refill_waits_on_the_device_for_the_last_read(arena: Arena) -> None:
    play = play_on(arena)
    play.submit(Order(demand=[(1, 0)]))
    play.wait_for_all()
    play.driver.read(play.transport.blob(0), lasts_ns=200_000)
    started_ns = play.driver.now_ns
    play.submit(Order(evicted=[(play.there.pop(0), 0)], demand=[(2, 0)]))
    assert play.driver.now_ns < started_ns + 100_000, "the host waited for the device"
    play.wait_for_all()
    assert play.driver.now_ns >= started_ns + 200_000
    play.transport.close()


def test_a_slot_that_nobody_reads_is_refilled_without_a_wait(arena: Arena) -> None:
    play = play_on(arena)
    play.submit(Order(demand=[(1, 0), (2, 1)]))
    play.wait_for_all()
    play.driver.read(play.transport.blob(0), lasts_ns=0)
    play.driver.tick(10)
    started_ns = play.driver.now_ns
    play.submit(Order(evicted=[(play.there.pop(0), 0)], demand=[(3, 0)]))
    play.wait_for_all()
    assert play.driver.now_ns < started_ns + 10 * CHUNK_NS
    play.transport.close()


def landing_order(play: PinnedPlay[FakeDriver]) -> list[int]:
    slots = []
    while play.coming:
        arrivals = play.transport.wait([*play.coming])
        slots += arrivals.landed
        play.settle(arrivals)
    play.transport.close()
    return slots


def test_a_demand_overtakes_prefetches_and_a_promoted_one_goes_with_it(arena: Arena) -> None:
    play = play_on(arena, FakeDriver(tick_ns=100))
    play.submit(Order(prefetch=[(1, 0, 9), (2, 1, 8), (3, 2, 7)]))
    play.clock = 10
    play.submit(Order(promote=[0], demand=[(4, 3)]))
    assert landing_order(play) == [0, 3, 2, 1]


def test_a_cancelled_prefetch_costs_the_link_no_more_than_what_was_in_flight(arena: Arena) -> None:
    play = play_on(arena, FakeDriver(tick_ns=100))
    play.submit(Order(prefetch=[(1, 0, 9), (2, 1, 9)]))
    play.submit(Order(cancel=[0, 1]))
    play.wait_for_all()
    assert not play.there and play.transport.bytes_transferred == 2 * CHUNK_BYTES
    play.transport.close()


def test_the_links_busy_time_is_the_devices(arena: Arena) -> None:
    play = play_on(arena)
    play.submit(Order(demand=[(key, key) for key in range(NUM_SLOTS)]))
    play.wait_for_all()
    stats = play.transport.stats()
    assert stats["link_busy_ns"] == stats["bytes_transferred"] == NUM_SLOTS * 8192
    play.transport.close()


def test_a_device_that_stands_still_is_an_error_that_names_the_setting(arena: Arena) -> None:
    play = PinnedPlay(FakeDriver(), arena, NUM_SLOTS, timeout_s=0.1)
    play.driver.is_poisoned = True
    play.submit(Order(demand=[(1, 0)]))
    with pytest.raises(LoaderLostError, match="SIDESTAGE_TIMEOUT"):
        play.transport.wait([0])
    with pytest.raises(RuntimeError, match="stays until this process ends"):
        play.transport.close()
    assert play.client.is_closed and play.driver.locked, "memory that the device may still read was unlocked"


def test_a_frame_that_changes_although_it_is_leased_is_an_error(arena: Arena) -> None:
    play = play_on(arena)
    play.submit(Order(demand=[(1, 0)]))
    arena.frame_table[1, 0] += 1
    try:
        with pytest.raises(ProtocolError, match="changed under its lease"):
            play.wait_for_all()
    finally:
        arena.frame_table[1, 0] -= 1
        play.transport.close()
