"""The scene: rates over a window, a client's from its own reports, and a cell for every expert. Pure."""

from collections.abc import Mapping
from typing import Any

import pytest

from launch.top.sample import Sample, Seen, Served
from launch.top.scene import WINDOW_S, recent, scene_of

SERVED = Served("/door", 7, "tiny@1", "olmoe", "4", 2, 4, 2, 4096)
STATS = {
    "frames": 8,
    "frames_sealed": 3,
    "frames_leased": 2,
    "queue_depth": 0,
    "bytes_read": 0,
    "fetched": 0,
    "host_hits": 0,
    "waits": 0,
    "wait_us": 0,
}


def sample(at: float, *clients: Seen, epoch: int = 1, sealed: set[int] | None = None, **stats: int) -> Sample:
    return Sample(SERVED, at, epoch, {**STATS, **stats}, frozenset(sealed or ()), frozenset({7}), clients)


def client(
    reported_s: float | None, in_slots: set[int] | None = None, counters: Mapping[str, int] | None = None
) -> Seen:
    return Seen(0, 99, 4, "direct, lru", reported_s, counters or {}, frozenset(in_slots or ()))


def counters(hits: int, late: int, misses: int, **others: int) -> dict[str, int]:
    return {"hits": hits, "late": late, "misses": misses, "slots": 3, **others}


def test_the_loaders_rates_are_differences_over_the_window() -> None:
    row = scene_of(
        [
            sample(10.0, bytes_read=1000, fetched=5, waits=4, wait_us=0, host_hits=1),
            sample(12.0, bytes_read=5000, fetched=15, waits=8, wait_us=8000, host_hits=6),
        ]
    ).loader
    assert (row.bytes_per_s, row.fetches_per_s, row.fetch_ms) == (2000.0, 5.0, 2.0)
    assert row.host_hit_rate == 0.5


def test_frames_are_leased_cached_filling_or_free() -> None:
    row = scene_of([sample(1.0)]).loader
    assert (row.frames, row.leased, row.cached, row.filling, row.free) == (8, 2, 2, 1, 4)


def test_one_look_tells_no_rate() -> None:
    scene = scene_of([sample(1.0, client(1.0, counters=counters(1, 1, 1)))])
    assert scene.loader.bytes_per_s is None
    assert scene.clients[0].hit is None
    assert scene.clients[0].tokens_per_s is None


def test_a_clients_shares_come_from_its_own_reports() -> None:
    before = counters(100, 10, 10, tokens=50, stall_us=0)
    after = counters(160, 30, 30, tokens=60, stall_us=500_000)
    (row,) = scene_of(
        [sample(10.0, client(9.0, counters=before)), sample(12.0, client(11.0, counters=after))]
    ).clients
    assert (row.hit, row.late, row.miss) == (0.6, 0.2, 0.2)
    assert (row.tokens_per_s, row.stalled, row.slots) == (5.0, 0.25, 3)


def test_a_report_that_is_seen_twice_is_no_second_report() -> None:
    same = counters(100, 10, 10, tokens=50)
    (row,) = scene_of(
        [sample(10.0, client(9.0, counters=same)), sample(10.5, client(9.002, counters=same))]
    ).clients
    assert row.tokens_per_s is None


def test_a_client_that_has_long_reported_nothing_is_idle() -> None:
    first = client(6.0, counters=counters(1, 0, 0, tokens=1))
    last = client(7.0, counters=counters(5, 0, 0, tokens=9))
    (row,) = scene_of([sample(8.0, first), sample(11.0, last)]).clients
    assert row.is_idle
    assert row.hit is None


def test_every_expert_has_the_cell_of_where_it_is() -> None:
    scene = scene_of([sample(1.0, client(1.0, in_slots={0, 5}), sealed={0, 1, 5})])
    assert scene.grid == ("4.  ", " 4 +")


def test_a_cell_is_the_stronger_the_longer_its_expert_is_in_a_slot() -> None:
    looks = [{0, 1, 2, 3}, {0, 1, 2}, {0, 1}, {0, 1, 3}]
    scene = scene_of([sample(float(at), client(1.0, in_slots=keys)) for at, keys in enumerate(looks)])
    assert scene.grid[0] == "44 2"


def test_samples_of_a_former_loader_and_old_ones_are_forgotten() -> None:
    samples = [sample(1.0), sample(20.0, epoch=1), sample(21.0, epoch=2), sample(22.0, epoch=2)]
    assert [each.taken_s for each in recent(samples)] == [21.0, 22.0]
    assert recent([sample(0.0), sample(WINDOW_S + 1)])[0].taken_s == WINDOW_S + 1


@pytest.mark.parametrize("name", ["served", "epoch", "window_s", "loader", "clients", "grid"])
def test_the_object_for_scripts_has_everything(name: str) -> None:
    told: dict[str, Any] = scene_of([sample(1.0, client(None))]).as_json()
    assert name in told
    assert told["clients"][0]["about"] == "direct, lru"
