"""Round trips of one expert, from the order until it is there, and how full the link gets.

`make bench` prints the tables; nothing is asserted but that every expert arrived.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.synthetic_store import make_store
from support.transport_play import TransportPlay

from compute.client import LoaderClient
from compute.loader_process import OwnedLoader, start_loader
from compute.transports.direct import DirectTransport
from compute.transports.emulated import EmulatedTransport

pytestmark = pytest.mark.bench

NUM_KEYS = 512
BLOB_KIB = 64


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "store"
    make_store(folder, num_layers=16, num_experts=NUM_KEYS // 16, top_k=2, stride_kib=BLOB_KIB)
    return folder


@pytest.fixture
def loader(store: Path) -> Iterator[OwnedLoader]:
    with start_loader(store, num_frames=NUM_KEYS) as loader:
        yield loader


def round_trips_us(play: TransportPlay, keys: range) -> list[float]:
    """Microseconds from a demand until its expert is there, one at a time."""
    times = []
    for key in keys:
        started = time.perf_counter()
        (slot,) = play.demand(key)
        arrivals = play.transport.wait([slot])
        times.append((time.perf_counter() - started) * 1e6)
        play.settle(arrivals)
        play.evict(slot)
    return times


def table(name: str, times: list[float]) -> None:
    p50, p99 = np.percentile(times, [50, 99])
    print(f"\n{name:48} p50 {p50:7.0f} us   p99 {p99:7.0f} us")


def test_round_trip_in_direct(loader: OwnedLoader, store: Path) -> None:
    client = LoaderClient(loader.endpoint, quota=NUM_KEYS, revive=loader.restart)
    transport = DirectTransport(client, num_slots=32, num_transit=2)
    play = TransportPlay(transport, client, store)
    table(f"direct, {BLOB_KIB} KiB read from the page cache", round_trips_us(play, range(NUM_KEYS)))
    table("direct, in the host cache already", round_trips_us(play, range(NUM_KEYS)))
    transport.close()


@pytest.mark.parametrize("make_rate", [lambda: None, lambda: 1_000_000_000, lambda: 50_000_000])
def test_round_trip_in_emulated(
    loader: OwnedLoader, store: Path, make_rate: Callable[[], int | None]
) -> None:
    rate = make_rate()
    client = LoaderClient(loader.endpoint, quota=NUM_KEYS, revive=loader.restart)
    transport = EmulatedTransport(client, num_slots=32, num_transit=2, rate=rate)
    play = TransportPlay(transport, client, store)
    wire_us = BLOB_KIB * 1024 / rate * 1e6 if rate else 0
    name = f"emulated, {wire_us:.0f} us on the link"
    table(f"{name}, from the page cache", round_trips_us(play, range(NUM_KEYS)))
    table(f"{name}, from the host cache", round_trips_us(play, range(NUM_KEYS)))
    transport.close()


@pytest.mark.parametrize("rate", [20_000_000, 100_000_000, 400_000_000])
def test_utilisation_of_the_link(loader: OwnedLoader, store: Path, rate: int) -> None:
    client = LoaderClient(loader.endpoint, quota=16, revive=loader.restart)
    transport = EmulatedTransport(client, num_slots=30, num_transit=2, rate=rate)
    play = TransportPlay(transport, client, store)
    play.demand(*range(32))
    play.wait_for_all()
    play.evict(*play.there)
    started, before = time.monotonic(), transport.bytes_transferred
    play.demand(*range(32))
    while time.monotonic() - started < 3:
        for slot in transport.wait([*play.coming]).landed:
            play.there[slot] = play.coming.pop(slot)
        num_landed = len(play.there)
        play.evict(*play.there)
        play.demand(*range(num_landed))
    share = (transport.bytes_transferred - before) / (time.monotonic() - started) / rate
    print(f"\nlink of {rate / 1e6:.0f} MB/s, {BLOB_KIB} KiB experts: {share:6.1%} of the rate")
    transport.close()
