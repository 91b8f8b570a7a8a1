"""Arrangement "direct": slots are leased frames, read in place."""

import os
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.synthetic_store import corrupt_blob, make_store
from support.transport_play import TransportPlay, killed_now_and_then

from compute.client import LoaderClient
from compute.loader_process import OwnedLoader, start_loader
from compute.transports.base import Order
from compute.transports.direct import DirectTransport
from protocol.arena import F_GENERATION, Arena
from protocol.errors import LoaderLostError, ProtocolError, StoreError

BLOB_BYTES = 16 * 1024
NUM_FRAMES = 12
SLOW = 20 * BLOB_BYTES


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("direct") / "store"
    make_store(folder, num_layers=4, num_experts=8, top_k=2, stride_kib=BLOB_BYTES // 1024)
    return folder


@contextmanager
def playing(
    loader: OwnedLoader, store: Path, *, num_slots: int = 10, timeout_s: float = 20, revives: bool = True
) -> Iterator[TransportPlay]:
    client = LoaderClient(
        loader.endpoint,
        quota=num_slots + 2,
        timeout_s=timeout_s,
        revive=loader.restart if revives else None,
    )
    transport = DirectTransport(client, num_slots=num_slots, num_transit=2)
    try:
        yield TransportPlay(transport, client, store)
    finally:
        transport.close()


@pytest.fixture
def loader(store: Path) -> Iterator[OwnedLoader]:
    with start_loader(store, num_frames=NUM_FRAMES, num_clients=2) as loader:
        yield loader


@pytest.fixture
def slow_loader(store: Path) -> Iterator[OwnedLoader]:
    with start_loader(store, num_frames=NUM_FRAMES, num_clients=2, threads=1, rate=SLOW) as loader:
        yield loader


def test_every_expert_arrives_with_the_stores_bytes(loader: OwnedLoader, store: Path) -> None:
    with playing(loader, store) as play:
        for first in range(0, 32, 8):
            play.demand(*range(first, first + 8))
            play.wait_for_all()
            play.evict(*play.there)
        assert play.num_landed == 32
        assert play.transport.bytes_transferred == 0
        assert play.transport.stats()["bytes_read"] == 32 * BLOB_BYTES


def test_a_slot_is_the_frame_itself_and_warns_nobody(loader: OwnedLoader, store: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with playing(loader, store) as play:
            (slot,) = play.demand(5)
            play.wait_for_all()
            blob = play.transport.blob(slot)
            frames = play.client.arena.frames
            offset = blob.data_ptr() - frames.ctypes.data
            assert 0 <= offset < frames.nbytes and offset % BLOB_BYTES == 0
            assert blob.dtype == torch.uint8 and blob.shape == (BLOB_BYTES,) and blob.data_ptr() % 4096 == 0
            assert play.transport.blob(slot) is blob
            del blob, frames


def test_an_eviction_makes_room_for_the_newcomer_of_the_same_order(loader: OwnedLoader, store: Path) -> None:
    with playing(loader, store) as play:
        play.demand(*range(12))
        play.wait_for_all()
        for key in range(12, 32):
            slot = key % 12
            evicted = [(play.there.pop(slot), slot)]
            play.coming[slot] = key
            play.transport.submit(Order(evicted=evicted, demand=[(key, slot)]), key)
            play.wait_for_all()
        play.check_everything_there()
        assert play.transport.stats()["client_tickets"] == 12


def test_waiting_reports_others_that_ended_too_and_each_once(loader: OwnedLoader, store: Path) -> None:
    with playing(loader, store) as play:
        slots = play.demand(*range(10))
        time.sleep(0.3)
        arrivals = play.transport.wait(slots[3:4])
        assert sorted(arrivals.landed) == slots
        assert play.transport.poll().landed == []


def test_a_promoted_prefetch_lands_before_the_others(slow_loader: OwnedLoader, store: Path) -> None:
    with playing(slow_loader, store) as play:
        slots = play.prefetch(*range(10))
        play.transport.submit(Order(promote=slots[-1:]), 0)
        play.settle(play.transport.wait(slots[-1:]))
        assert len(play.there) <= 3


def test_a_cancelled_prefetch_ends_with_or_without_its_expert(slow_loader: OwnedLoader, store: Path) -> None:
    with playing(slow_loader, store) as play:
        slots = play.prefetch(*range(10))
        play.transport.submit(Order(cancel=slots), 0)
        play.wait_for_all()
        assert play.num_dropped >= 7 and play.num_landed + play.num_dropped == 10
        play.check_everything_there()


def test_a_cancellation_that_is_taken_back_ends_with_the_expert(
    slow_loader: OwnedLoader, store: Path
) -> None:
    with playing(slow_loader, store) as play:
        slots = play.prefetch(*range(6))
        play.transport.submit(Order(cancel=slots), 0)
        play.transport.submit(Order(promote=slots), 0)
        play.wait_for_all()
        assert play.num_landed == 6 and not play.num_dropped


def test_a_damaged_expert_is_an_error_for_a_demand_and_a_drop_for_a_prefetch(tmp_path: Path) -> None:
    manifest = make_store(tmp_path / "store", 1, 8, 2, stride_kib=16)
    corrupt_blob(tmp_path / "store", manifest, key=3)
    with (
        start_loader(tmp_path / "store", num_frames=6) as loader,
        playing(loader, tmp_path / "store", num_slots=4) as play,
    ):
        play.meet_damage(3)


def test_a_prefetch_that_fails_once_it_is_needed_is_an_error(tmp_path: Path) -> None:
    manifest = make_store(tmp_path / "store", 1, 8, 2, stride_kib=16)
    corrupt_blob(tmp_path / "store", manifest, key=3)
    with (
        start_loader(tmp_path / "store", num_frames=6, threads=1, rate=SLOW) as loader,
        playing(loader, tmp_path / "store", num_slots=4) as play,
    ):
        slots = play.prefetch(1, 2, 3)
        play.transport.submit(Order(promote=slots[-1:]), 0)
        with pytest.raises(StoreError, match="checksum"):
            play.wait_for_all()


def test_a_frame_that_changes_under_its_lease_is_never_handed_out(loader: OwnedLoader, store: Path) -> None:
    with playing(loader, store) as play:
        (slot,) = play.demand(5)
        play.wait_for_all()
        frame = play.transport._staging.staged(slot).frame  # type: ignore[attr-defined]
        with Arena(loader.arena_fd, writable=True) as arena:
            arena.frame_table[frame, F_GENERATION] += 1
        with pytest.raises(ProtocolError, match="under its lease"):
            play.transport.blob(slot)


def test_a_quota_below_the_slots_is_refused(loader: OwnedLoader) -> None:
    with LoaderClient(loader.endpoint, quota=5) as client, pytest.raises(ValueError, match="quota of 5"):
        DirectTransport(client, num_slots=4, num_transit=2)


def test_a_killed_loader_costs_no_slot_and_no_byte(slow_loader: OwnedLoader, store: Path) -> None:
    with playing(slow_loader, store) as play:
        slots = play.demand(*range(3))
        play.settle(play.transport.wait(slots))
        play.prefetch(*range(3, 9))
        os.kill(slow_loader.pid, signal.SIGKILL)
        play.demand(20)
        play.wait_for_all()
        assert play.num_landed == 10
        play.check_everything_there()
        assert play.transport.stats()["loader_restarts"] == 1


def test_a_loader_stopped_in_order_costs_no_demand_either(slow_loader: OwnedLoader, store: Path) -> None:
    with playing(slow_loader, store) as play:
        play.demand(*range(8))
        os.kill(slow_loader.pid, signal.SIGTERM)
        play.wait_for_all()
        assert play.num_landed == 8 and not play.num_dropped


def test_a_loader_that_is_gone_for_good_is_an_error_within_the_timeout(
    loader: OwnedLoader, store: Path
) -> None:
    with playing(loader, store, timeout_s=0.6, revives=False) as play:
        os.kill(loader.pid, signal.SIGKILL)
        play.demand(1)
        started = time.monotonic()
        with pytest.raises(LoaderLostError, match="SIDESTAGE_TIMEOUT"):
            play.wait_for_all()
        assert time.monotonic() - started < 3


def test_counters_can_still_be_read_after_closing(loader: OwnedLoader, store: Path) -> None:
    with playing(loader, store) as play:
        play.demand(1)
        play.wait_for_all()
        stats = play.transport.stats()
        play.transport.close()
        assert play.transport.stats() == stats


def test_a_closed_transport_keeps_no_memory_of_the_arena(loader: OwnedLoader, store: Path) -> None:
    with playing(loader, store) as play:
        play.demand(1)
        play.wait_for_all()
        arenas = [fd for fd in os.listdir("/proc/self/fd") if is_arena(fd)]
        play.transport.close()
        play.there.clear()
        assert len([fd for fd in os.listdir("/proc/self/fd") if is_arena(fd)]) == len(arenas) - 1


def is_arena(fd: str) -> bool:
    path = Path("/proc/self/fd") / fd
    return path.is_symlink() and os.readlink(path).startswith("/memfd:sidestage-arena")


def test_any_order_of_orders_keeps_the_quota_and_the_bytes(store: Path) -> None:
    with start_loader(store, num_frames=NUM_FRAMES, num_clients=2) as loader:

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(st.lists(st.integers(0, 159), max_size=12), max_size=25))
        def play_anything(steps: list[list[int]]) -> None:
            with playing(loader, store, num_slots=5) as play:
                for numbers in steps:
                    play.step(numbers)
                assert play.transport.stats()["client_tickets"] <= play.client.quota
                play.wait_for_all()
                play.check_everything_there()

        play_anything()


def test_a_loader_killed_now_and_then_changes_nothing(store: Path) -> None:
    with (
        start_loader(store, num_frames=NUM_FRAMES, num_clients=2) as loader,
        playing(loader, store, num_slots=5) as play,
        killed_now_and_then(loader),
    ):
        play.play_for(4)
        assert play.client.num_restarts > 0
