"""Beside a device that runs behind: whatever comes when, it reads the bytes of the expert it looked for.

The device of these tests does a launched layer-step in four moments that may lie far apart: it looks into
the table, takes open slots and posts (resolve), brings (gather), reads every row's expert. The
transport's copies land at any time. Each slot and frame holds the number of its expert, and a read that
finds another fails.
"""

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_driver import FakeDriver
from support.host_resolver import HostResolver
from torch import Tensor

from compute.beside.follower import BegunPass, Follower, Launched
from compute.beside.lending import LendingResidency
from compute.beside.mailbox import Mailbox
from compute.beside.open_slots import OpenSlots
from compute.beside.resolver import NUM_STATE_WORDS, STEP
from compute.beside.table import DeviceSlotTable
from compute.beside.words import IN_SLOT, Extent, SharedWords
from compute.look_ahead import LookAhead
from compute.policies import named
from compute.policies.base import CacheShape
from compute.predictors.base import Prediction
from compute.prefetch import PrefetchPlanner
from compute.supply import Supply
from compute.transports.base import Arrivals, Order

NUM_LAYERS, NUM_EXPERTS, TOP_K = 2, 5, 2
NUM_KEYS = NUM_LAYERS * NUM_EXPERTS
BLOB_BYTES = 8


class SlowCopies:
    """A transport of which `land` moves one blob: into memory that must not be read at that moment."""

    arrangement = "pinned"
    num_transit = 1
    bytes_transferred = 0

    def __init__(self, pool: Tensor, frames: Tensor) -> None:
        self.num_slots = len(pool) - self.num_transit
        self.coming: deque[tuple[int, int]] = deque()
        self.num_submitted = 0
        self._cancelled: set[int] = set()
        self._pool, self._frames = pool, frames
        self._arrivals = Arrivals([], [])

    def submit(self, order: Order, clock: int) -> None:
        assert not order.evicted, "a slot was vacated and not cooled"
        self._cancelled.update(order.cancel)
        self.coming.extend(order.demand)  # a guess that was cancelled, dropped, and used meanwhile
        self.coming.extend((key, slot) for key, slot, _ in order.prefetch)
        self.num_submitted += len(order.prefetch)

    def land(self) -> None:
        if self.coming:
            key, slot = self.coming.popleft()
            if slot in self._cancelled:
                self._cancelled.remove(slot)
                self._arrivals.dropped.append(slot)
                return
            self._pool[slot] = self._frames[key]
            self._arrivals.landed.append(slot)

    def poll(self) -> Arrivals:
        arrivals, self._arrivals = self._arrivals, Arrivals([], [])
        return arrivals


@dataclass
class InFlight:
    """A layer-step on the device, how far it is, and the table as it was when the step looked into it.

    Open slots and epoch may be newer than that: a kernel's loads have no order.
    """

    step: Launched
    index: Tensor
    addresses: Tensor
    sources: Tensor
    table: Tensor
    moment: int = 0


class Guesses:
    """A predictor that knows a part of what comes, and names others."""

    name = "guesses"
    notices: list[str] = []  # noqa: RUF012 - the protocol's

    def __init__(self, lookahead: int, random: np.random.Generator) -> None:
        self.lookahead = lookahead
        self._random = random

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        pass

    def observe(self, layer: int, chosen: object) -> None:
        pass

    def predict(self, layer: int, residual: object, chosen: object) -> list[Prediction]:
        targets = range(layer + 1, min(layer + 1 + self.lookahead, NUM_LAYERS))
        return [Prediction(t, self._random.permutation(NUM_EXPERTS)[:TOP_K].tolist()) for t in targets]

    def close(self) -> None:
        pass


class Play:
    """Host and device, moved on one moment at a time."""

    def __init__(self, num_slots: int, num_offered: int, policy: str, lookahead: int, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        blobs = torch.arange(NUM_KEYS, dtype=torch.uint8)[:, None].repeat(1, BLOB_BYTES)
        self.pool = torch.full((num_slots + 1, BLOB_BYTES), 255, dtype=torch.uint8)
        self.frames = blobs
        addresses = np.array([frame.data_ptr() for frame in blobs], np.int64)
        self.shared = SharedWords(
            FakeDriver(), Extent(NUM_KEYS, max(num_offered, 1), 4 * NUM_LAYERS, 1 + 3 * TOP_K)
        )
        words = self.shared.words
        self.table = DeviceSlotTable(words, addresses, self.pool)
        shape = CacheShape(NUM_LAYERS, NUM_EXPERTS, TOP_K, num_slots)
        self.residency = LendingResidency(num_slots, TOP_K, named(policy, shape), table=self.table)
        self.copies = SlowCopies(self.pool, self.frames)
        self.told: list[tuple[int, int]] = []
        ahead = None
        if lookahead:
            planner = PrefetchPlanner(NUM_EXPERTS, TOP_K, BLOB_BYTES, lookahead)
            ahead = LookAhead(Guesses(lookahead, self.random), planner, self.residency, _Shape())  # type: ignore[arg-type]
        num_spare = min(TOP_K * lookahead, num_slots // 4)
        self.open_slots = OpenSlots(words, self.table, self.residency, num_offered, num_spare, NUM_KEYS)
        self.follower = Follower(
            residency=self.residency,
            table=self.table,
            mailbox=Mailbox(words),
            open_slots=self.open_slots,
            supply=Supply(self.residency, self.copies, None),  # type: ignore[arg-type]
            look_ahead=ahead,
            begin_pass=self.residency.policy.begin_pass,
            told=lambda *step: self.told.append(step),
            num_experts=NUM_EXPERTS,
            timeout_s=5,
        )
        self.state = torch.zeros(NUM_STATE_WORDS, dtype=torch.int64)
        self.queue: deque[InFlight] = deque()
        #: of the next step to be launched
        self.clock = 0
        self.num_launched = 0
        self.num_lookups = 0
        self._resolver = HostResolver()

    def launch(self, num_tokens: int) -> None:
        """The host launches the next layer-step, if the mailbox has a row for it."""
        if not self.follower._has_room(self.clock):
            return
        layer = self.clock % NUM_LAYERS
        if layer == 0:
            self.follower.begun(BegunPass(num_tokens, False))
        chosen = [self.random.permutation(NUM_EXPERTS)[:TOP_K] for _ in range(num_tokens)]
        index = torch.from_numpy(np.array(chosen))
        self.num_lookups += len(index.unique())
        step = Launched(layer, self.clock, num_tokens, TOP_K)
        rows = torch.zeros(2, step.num_rows, dtype=torch.int64)
        self.queue.append(InFlight(step, index, rows[0], rows[1], self.shared.words.table))
        self.clock += 1
        self.num_launched += 1
        self.follower.launched(step)

    def break_off(self) -> None:
        """The pass ends between its layers: the next step is another pass's first."""
        self.clock += -self.clock % NUM_LAYERS

    def move(self) -> None:
        """The device does the next thing; steps follow each other as on a stream."""
        if not self.queue:
            return
        now = self.queue[0]
        if now.moment == 0:
            now.table = self.shared.words.table.clone()
        elif now.moment == 1:
            self.state[STEP] = now.step.clock - now.step.layer
            self._resolver.resolve(
                replace(self.shared.words, table=now.table),
                self.state, now.step.layer, NUM_EXPERTS, now.index, None,
                now.addresses, now.sources,
            )  # fmt: skip
        elif now.moment == 2:
            self._resolver.gather(now.addresses, now.sources, BLOB_BYTES)
        else:
            self._read(now)
            self.queue.popleft()
        now.moment += 1

    def _read(self, now: InFlight) -> None:
        for expert, address in zip(now.index.reshape(-1).tolist(), now.addresses.tolist(), strict=True):
            key = now.step.layer * NUM_EXPERTS + expert
            assert self._content(address) == key, f"step {now.step.clock} read another expert than {key}"

    def _content(self, address: int) -> int:
        for memory in (self.pool, self.frames):
            offset = address - memory.data_ptr()
            if 0 <= offset < memory.numel():
                content = set(memory.view(-1)[offset : offset + BLOB_BYTES].tolist())
                assert len(content) == 1
                return content.pop()
        raise AssertionError(f"{address} is nowhere")

    def end(self) -> None:
        while self.queue:
            self.move()
        self.follower.catch_up()

    def check_slots(self) -> None:
        """Every slot is accounted for once."""
        residency = self.residency
        num_lent, num_full = residency.num_lent, len(residency.resident_keys()) + residency.num_coming
        assert num_lent + num_full + residency.num_free == residency.num_slots

    def check_bytes(self) -> None:
        """Residents are where the table says. The device must have done all that it was given."""
        for key in self.residency.resident_keys():
            assert self._content(int(self.shared.words.table[key]) & ~IN_SLOT) == key


class _Shape:
    num_experts, num_keys = NUM_EXPERTS, NUM_KEYS


#: How often each thing happens: everything alike, a device that lags, one that waits, a slow link.
RATES = {
    "even": (2, 1, 8, 4, 2),
    "lagging": (3, 1, 6, 8, 4),
    "ahead": (1, 1, 9, 2, 3),
    "slow link": (2, 0, 8, 5, 1),
    "slow device": (2, 0, 6, 8, 8),
}


@settings(max_examples=200, deadline=None)
@given(
    num_slots=st.integers(TOP_K, NUM_KEYS),
    num_offered=st.integers(0, 4),
    policy=st.sampled_from(["lru", "lfu-aged", "reuse-distance"]),
    lookahead=st.integers(0, 2),
    rates=st.sampled_from(sorted(RATES)),
    seed=st.integers(0, 2**16),
)
def test_the_device_reads_the_expert_that_it_looked_for_in_any_order_of_events(
    num_slots: int, num_offered: int, policy: str, lookahead: int, rates: str, seed: int
) -> None:
    play = Play(num_slots, num_offered, policy, lookahead, seed)
    weights = np.array([*RATES[rates], 1])
    chances = weights / weights.sum()
    for event in play.random.choice(6, size=500, p=chances).tolist():
        match event:
            case 0:
                play.launch(1)
            case 1:
                play.launch(3)
            case 2:
                play.move()
            case 3:
                play.follower.follow()
                play.check_slots()
            case 4:
                play.copies.land()
            case 5:
                play.break_off()
    play.end()
    play.check_slots()
    play.check_bytes()
    counters = play.residency.counters
    assert counters.lookups == play.num_lookups
    assert len(play.told) == play.num_launched
    assert play.follower.num_landed + play.follower.num_in_place == counters.misses + counters.late
    ended = counters.prefetch_used + counters.prefetch_wasted + counters.prefetch_dropped
    assert counters.prefetch_issued == ended + len(play.residency._guesses)


def test_a_guess_that_the_device_overtakes_is_cancelled_and_its_slot_is_free_again() -> None:
    play = Play(num_slots=8, num_offered=2, policy="lru", lookahead=1, seed=0)
    (key, slot), *_ = play.residency.speculate([(3, 5)], set(), 1).coming
    play.copies.submit(Order(prefetch=[(key, slot, 5)]), 1)
    lent = play.open_slots.take()
    free = play.residency.num_free
    served = play.residency.serve(0, [3], [3], {3: lent}, 0, 2)
    assert (served.overtaken, served.returned) == ([slot], [])
    assert play.residency.slot_of(3) == lent and play.residency.is_resident(3)
    assert play.residency.num_free == free and play.residency.num_coming == 1
    counters = play.residency.counters
    assert (counters.misses, counters.late, counters.prefetch_used, counters.prefetch_dropped) == (1, 0, 0, 1)
    play.copies.land()
    play.follower._supply.settle_arrivals(3)
    assert play.residency.num_free == free + 1 and play.residency.num_coming == 0
    assert play.residency.slot_of(3) == lent, "the late copy took the place of the expert that was there"


def test_passes_that_are_broken_off_overwrite_no_row_that_was_not_read() -> None:
    play = Play(4, 1, "lru", 0, 0)
    mailbox_passes = 4
    for _ in range(mailbox_passes):
        play.launch(1)
        play.break_off()
    assert play.clock // NUM_LAYERS == mailbox_passes
    play.follower._timeout_s = 0.01
    with pytest.raises(RuntimeError, match="has not run a layer-step"):
        play.follower.make_room(play.clock + NUM_LAYERS - 1)


def test_a_step_is_followed_once_even_if_whoever_hears_of_it_fails() -> None:
    play = Play(4, 2, "lru", 0, 0)

    def fail(layer: int, num_tokens: int) -> None:
        raise OSError("a full disk")

    play.follower._told = fail
    for _ in range(NUM_LAYERS):
        play.launch(1)
    while play.queue:
        play.move()
    for _ in range(NUM_LAYERS):
        with pytest.raises(OSError, match="full disk"):
            play.follower.follow()
    assert not play.follower.follow()
    assert play.residency.counters.lookups == play.num_lookups
