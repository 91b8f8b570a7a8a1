"""Benchmark: what following the device costs the host, for one layer-step of Qwen3-30B-A3B's shape.

`pytest -m bench -s tests/compute/test_follow_cost.py`. Routing is random with favourites, and half of
the steps repeat the token before; the device's kernels are a double, whose time is not counted.
"""

import statistics
import time

import numpy as np
import pytest
import torch
from support.fake_driver import FakeDriver
from support.host_resolver import HostResolver

from compute.beside.follower import BegunPass, Follower, Launched
from compute.beside.lending import LendingResidency
from compute.beside.mailbox import Mailbox
from compute.beside.open_slots import OpenSlots
from compute.beside.resolver import NUM_STATE_WORDS, STEP
from compute.beside.table import DeviceSlotTable
from compute.beside.words import Extent, SharedWords
from compute.policies import named
from compute.policies.base import CacheShape
from compute.supply import Supply
from compute.transports.base import Arrivals, Order

NUM_LAYERS, NUM_EXPERTS, TOP_K = 48, 128, 8
NUM_KEYS = NUM_LAYERS * NUM_EXPERTS
WARM, MEASURED = 40, 60


class Instant:
    """A transport whose copies are there when somebody looks: of experts that were read in place."""

    num_transit, bytes_transferred, arrangement, num_slots = 1, 0, "pinned", NUM_KEYS

    def __init__(self) -> None:
        self._arrivals = Arrivals([], [])

    def submit(self, order: Order, clock: int) -> None:
        self._arrivals.landed.extend(slot for _, slot, _ in order.prefetch)

    def poll(self) -> Arrivals:
        arrivals, self._arrivals = self._arrivals, Arrivals([], [])
        return arrivals


def follow(policy: str, num_slots: int) -> tuple[list[float], float]:
    """(us of each measured step, hit rate)."""
    random = np.random.default_rng(0)
    shared = SharedWords(FakeDriver(), Extent(NUM_KEYS, 2 * TOP_K, 4 * NUM_LAYERS, 1 + TOP_K))
    frames = 4096 * np.arange(1, NUM_KEYS + 1, dtype=np.int64)
    table = DeviceSlotTable(shared.words, frames, torch.zeros(num_slots + 1, 8, dtype=torch.uint8))
    shape = CacheShape(NUM_LAYERS, NUM_EXPERTS, TOP_K, num_slots)
    residency = LendingResidency(num_slots, TOP_K, named(policy, shape), table=table)
    num_offered = 2 * TOP_K if num_slots < NUM_KEYS else 0
    follower = Follower(
        residency=residency,
        table=table,
        mailbox=Mailbox(shared.words),
        open_slots=OpenSlots(shared.words, table, residency, num_offered, 0, NUM_KEYS),
        supply=Supply(residency, Instant(), None),  # type: ignore[arg-type]
        look_ahead=None,
        begin_pass=residency.policy.begin_pass,
        told=lambda layer, num_tokens: None,
        num_experts=NUM_EXPERTS,
        timeout_s=5,
    )
    resolver, state = HostResolver(), torch.zeros(NUM_STATE_WORDS, dtype=torch.int64)
    addresses, sources = torch.zeros(2, TOP_K, dtype=torch.int64)
    favour = -1.1 * np.log(np.arange(1, NUM_EXPERTS + 1))
    names = [random.permutation(NUM_EXPERTS) for _ in range(NUM_LAYERS)]
    chosen = [name[:TOP_K] for name in names]
    spent = []
    for token in range(1, WARM + MEASURED + 1):
        follower.begun(BegunPass(1, False))
        state[STEP] = token * NUM_LAYERS
        for layer in range(NUM_LAYERS):
            if random.random() < 0.5:
                drawn = np.argsort(-(favour + random.gumbel(size=NUM_EXPERTS)))[:TOP_K]
                chosen[layer] = names[layer][drawn]
            index = torch.from_numpy(chosen[layer])[None]
            follower.launched(Launched(layer, token * NUM_LAYERS + layer, 1, TOP_K))
            resolver.resolve(shared.words, state, layer, NUM_EXPERTS, index, None, addresses, sources)
            started = time.perf_counter()
            follower.follow()
            spent.append((time.perf_counter() - started) * 1e6)
    shared.close()
    return spent[WARM * NUM_LAYERS :], residency.counters.hit_rate or 0.0


@pytest.mark.bench
def test_what_following_costs() -> None:
    print("\n| policy | slots | hit rate | us a layer-step, median | mean |\n| --- | --- | --- | --- | --- |")
    for policy in ("lru", "lfu-aged", "reuse-distance"):
        for share in (100, 50, 25):
            spent, hit_rate = follow(policy, NUM_KEYS * share // 100)
            figures = f"{statistics.median(spent):.0f} | {statistics.mean(spent):.0f}"
            print(f"| {policy} | {share} % | {hit_rate:.0%} | {figures} |")
            assert len(spent) == MEASURED * NUM_LAYERS
