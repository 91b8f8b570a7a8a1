"""Arrangement "staged": a real loader and its frames, and the cuda link over a fake device to the slots."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fake_driver import FakeDriver
from support.synthetic_store import make_store
from support.transport_play import TransportPlay, killed_now_and_then

from compute.budget import Budget
from compute.client import LoaderClient
from compute.loader_process import OwnedLoader, start_loader
from compute.transports import page_lock
from compute.transports.cuda import open_cuda_transport

BLOB_BYTES = 64 * 1024
CHUNK_BYTES = 24 * 1024
NUM_FRAMES = 8


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("staged") / "store"
    make_store(folder, num_layers=4, num_experts=8, top_k=2, stride_kib=BLOB_BYTES // 1024)
    return folder


@contextmanager
def playing(
    loader: OwnedLoader, store: Path, driver: FakeDriver, quota: int = 6, num_slots: int = 6
) -> Iterator[TransportPlay]:
    client = LoaderClient(
        loader.endpoint, quota=quota, timeout_s=20, revive=loader.restart, maps_writable=True
    )
    transport = open_cuda_transport(
        driver,
        client,
        arrangement="staged",
        num_keys=32,
        budget=Budget(num_slots, 2, quota, "", ()),
        pin_bytes=None,
        chunk_bytes=CHUNK_BYTES,
    ).transport
    try:
        yield TransportPlay(transport, client, store)
    finally:
        transport.close()


@pytest.mark.parametrize("num_locked", [NUM_FRAMES, 3, 0])
def test_any_order_of_orders_keeps_the_quota_and_the_bytes(
    store: Path, num_locked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames are used again as soon as their leases go back: too early, and a slot holds something else."""
    monkeypatch.setattr(page_lock, "LEAST_BYTES", 1)
    with start_loader(store, num_frames=NUM_FRAMES, num_clients=2) as loader:

        @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(st.lists(st.integers(0, 159), max_size=12), max_size=20), st.integers(2, 8))
        def play_anything(steps: list[list[int]], quota: int) -> None:
            driver = FakeDriver(rate=5e9, tick_ns=5000, most_locked=num_locked * BLOB_BYTES + 2 * CHUNK_BYTES)
            with playing(loader, store, driver, quota) as play:
                for numbers in steps:
                    play.step(numbers)
                play.wait_for_all()
                play.check_everything_there()
                assert play.transport.stats()["torn_frames"] == 0, "a lease went back before the copy"
            assert driver.most_in_flight <= 2 and not driver.locked

        play_anything()


def test_leases_go_back_after_the_copy(store: Path) -> None:
    with (
        start_loader(store, num_frames=NUM_FRAMES) as loader,
        playing(loader, store, FakeDriver(rate=5e9)) as play,
    ):
        for key in range(8):
            slots = play.demand(key)
            play.wait_for_all()
            play.evict(*slots)
        assert play.transport.stats()["client_tickets"] <= 1


def test_a_loader_killed_now_and_then_changes_nothing(store: Path) -> None:
    with (
        start_loader(store, num_frames=NUM_FRAMES) as loader,
        playing(loader, store, FakeDriver(rate=5e9), num_slots=5) as play,
        killed_now_and_then(loader, interval_s=0.5),
    ):
        number = 0
        while play.client.num_restarts < 2:
            number += 7
            play.step([number, number * 3 + 3, number * 5 + 3, number + 4, number * 11])
            play.wait_for_all()
            play.check_everything_there()
