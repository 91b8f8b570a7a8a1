"""Residency: the slot table keeps its promises whatever the order of steps, landings and cancels."""

from collections.abc import Container, Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from compute.policies import named
from compute.policies.base import CacheShape, EvictionPolicy
from compute.policies.lru import Lru
from compute.residency import Access, Residency, SlotState

NUM_LAYERS, NUM_EXPERTS, TOP_K = 4, 6, 2


def policy(num_slots: int, spec: str = "lru") -> EvictionPolicy:
    return named(spec, CacheShape(NUM_LAYERS, NUM_EXPERTS, TOP_K, num_slots))


def residency(num_slots: int) -> Residency:
    return Residency(num_slots, TOP_K, policy(num_slots))


def step(table: Residency, keys: list[int], clock: int) -> Access:
    """A layer-step whose fetches all land before it ends, as in a run without prefetch."""
    access = table.access(keys[0] // NUM_EXPERTS, keys, clock)
    for _, slot in [*access.admitted, *access.late]:
        table.landed(slot)
    return access


# --- one behaviour each -------------------------------------------------------------------------


def test_fewer_slots_than_top_k_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 slots"):
        residency(1)


def test_a_step_larger_than_the_cache_evicts_nobody_and_fills_free_slots_in_order() -> None:
    table = residency(3)
    step(table, [0], clock=0)
    access = table.access(1, [6, 7, 8, 9], clock=1)
    assert access.evicted == []
    assert [key for key, _ in access.admitted] == [6, 7]
    assert access.passing == [8, 9]
    assert table.is_resident(0)


def test_a_step_larger_than_the_cache_does_not_even_evict_a_guess_gone_by() -> None:
    table = residency(4)
    guess = table.speculate([(20, 1)], set(), clock=0).coming[0]
    table.landed(guess[1])
    access = table.access(1, [6, 7, 8, 9, 10], clock=1)
    assert access.evicted == []
    assert table.is_resident(20)


def test_victims_are_chosen_outside_the_whole_step() -> None:
    table = residency(3)
    for clock, key in enumerate([0, 1, 2]):
        step(table, [key], clock)
    access = step(table, [0, 3], clock=3)
    assert [key for key, _ in access.hits] == [0]
    assert [key for key, _ in access.evicted] == [1]


def test_a_guess_gone_by_leaves_before_the_least_recently_used() -> None:
    table = residency(3)
    step(table, [0], clock=0)
    table.landed(table.speculate([(8, 1)], {0}, clock=0).coming[0][1])
    step(table, [6], clock=1)
    assert [key for key, _ in step(table, [12], clock=2).evicted] == [8]
    assert table.counters.prefetch_wasted == 1


def test_a_guess_still_ahead_leaves_only_when_nobody_else_can() -> None:
    table = residency(4)
    for _, slot in table.speculate([(20, 9), (21, 5)], set(), clock=0).coming:
        table.landed(slot)
    step(table, [0, 1], clock=1)
    assert [key for key, _ in step(table, [0, 1, 2], clock=2).evicted] == [20]


def test_a_used_guess_is_an_ordinary_resident() -> None:
    table = residency(3)
    table.landed(table.speculate([(6, 1)], set(), clock=0).coming[0][1])
    access = step(table, [6], clock=1)
    assert [key for key, _ in access.hits] == [6]
    assert not table.is_on_probation(6)
    assert (table.counters.prefetch_issued, table.counters.prefetch_used) == (1, 1)


def test_guesses_stay_within_slots_minus_top_k() -> None:
    table = residency(5)
    speculation = table.speculate([(key, 1) for key in range(6, 12)], set(), clock=0)
    assert [key for key, _ in speculation.coming] == [6, 7, 8]
    assert table.speculative_room(clock=0) == 0


def test_guesses_gone_by_make_room_for_new_ones_even_without_a_miss() -> None:
    table = residency(3)
    table.landed(table.speculate([(6, 1)], set(), clock=0).coming[0][1])
    step(table, [7], clock=1)
    assert table.speculative_room(clock=1) == 1
    speculation = table.speculate([(12, 2)], {7}, clock=1)
    assert [key for key, _ in speculation.coming] == [12]
    assert [key for key, _ in speculation.evicted] == [6]


def test_a_guess_that_is_wanted_again_gets_the_later_deadline() -> None:
    table = residency(3)
    table.landed(table.speculate([(6, 1)], set(), clock=0).coming[0][1])
    assert table.speculate([(6, 7)], set(), clock=3).coming == []
    assert table.wasted_now(clock=3) == 0
    assert table.wasted_now(clock=7) == 1


def test_nobody_held_leaves_for_a_guess() -> None:
    table = residency(3)
    for clock, key in enumerate([0, 1, 2]):
        step(table, [key], clock)
    assert [key for key, _ in table.speculate([(9, 4)], {0}, clock=3).evicted] == [1]


def test_an_overdue_guess_is_named_once() -> None:
    table = residency(4)
    slot = table.speculate([(6, 1)], set(), clock=0).coming[0][1]
    assert table.cancel_overdue(clock=0) == []
    assert table.cancel_overdue(clock=1) == [slot]
    assert table.cancel_overdue(clock=1) == []
    assert table.num_guesses_coming == 0


def test_a_cancelled_guess_without_bytes_is_no_waste() -> None:
    table = residency(4)
    slot = table.speculate([(6, 1)], set(), clock=0).coming[0][1]
    table.cancel_overdue(clock=1)
    assert table.dropped(slot) == 6
    assert table.state_of(slot) is SlotState.FREE
    assert table.wasted_now(clock=9) == 0
    assert table.counters.prefetch_dropped == 1


def test_a_cancelled_guess_that_is_wanted_after_all_is_ordered_again_as_a_miss() -> None:
    table = residency(4)
    slot = table.speculate([(6, 1)], set(), clock=0).coming[0][1]
    table.cancel_overdue(clock=1)
    access = table.access(1, [6], clock=5)
    assert access.late == [(6, slot)]
    assert table.is_awaited(slot)
    assert table.ordered_again(slot) == 6
    table.landed(slot)
    counters = table.counters
    assert (counters.late, counters.misses, counters.prefetch_used) == (0, 1, 0)


def test_a_cancelled_guess_that_lands_just_in_time_is_late_and_used() -> None:
    table = residency(4)
    slot = table.speculate([(6, 1)], set(), clock=0).coming[0][1]
    table.cancel_overdue(clock=1)
    table.access(1, [6], clock=5)
    table.landed(slot)
    assert (table.counters.late, table.counters.prefetch_used) == (1, 1)


def test_rates_are_none_where_there_is_nothing_to_divide() -> None:
    counters = residency(3).counters
    assert counters.hit_rate is None
    assert counters.miss_recall is None


def test_without_prefetch_there_is_no_recall_of_misses() -> None:
    table = residency(3)
    step(table, [0], clock=0)
    assert table.counters.miss_recall is None
    assert table.counters.hit_rate == 0.0


class Careless(Lru):
    """A user's policy that names whom it must not."""

    def choose_victims(self, count: int, held: Container[int]) -> list[int]:
        return [0, 0]


def test_a_policy_that_names_a_wrong_victim_is_refused_by_name() -> None:
    table = Residency(2, 2, Careless(CacheShape(NUM_LAYERS, NUM_EXPERTS, TOP_K, 2)))
    step(table, [0, 1], clock=0)
    with pytest.raises(ValueError, match=r"Careless\.choose_victims"):
        table.access(0, [2], clock=1)


class Choosy(Lru):
    """Keeps whoever is there: a newcomer gets a slot only where one is free."""

    def choose_admitted(self, missing: Sequence[int], num_free: int, held: Container[int]) -> list[int]:
        return list(missing[:num_free])


def test_a_policy_may_let_experts_pass() -> None:
    table = Residency(2, 2, Choosy(CacheShape(NUM_LAYERS, NUM_EXPERTS, TOP_K, 2)))
    assert [key for key, _ in step(table, [0], clock=0).admitted] == [0]
    access = step(table, [1, 2], clock=1)
    assert [key for key, _ in access.admitted] == [1]
    assert (access.passing, access.evicted) == ([2], [])
    assert table.counters.misses == 3


class Inventive(Lru):
    def choose_admitted(self, missing: Sequence[int], num_free: int, held: Container[int]) -> list[int]:
        return [99]


def test_a_policy_that_admits_whom_nobody_wants_is_refused_by_name() -> None:
    table = Residency(2, 2, Inventive(CacheShape(NUM_LAYERS, NUM_EXPERTS, TOP_K, 2)))
    step(table, [1, 2], clock=0)
    with pytest.raises(ValueError, match=r"Inventive\.choose_admitted named \[99\] out of \[0\]"):
        table.access(0, [0], clock=1)


def test_nobody_passes_while_there_is_a_slot_for_all() -> None:
    """The policy is not asked: so a slot for every expert is enough, and none is left for transit."""
    table = Residency(4, 2, Inventive(CacheShape(NUM_LAYERS, NUM_EXPERTS, TOP_K, 4)))
    for clock, keys in enumerate(([0, 1], [2, 3], [0, 3])):
        assert not step(table, keys, clock=clock).passing


# --- whatever happens -------------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Drives a table by random steps, guesses, landings and cancels beside a shadow of its slots."""

    @initialize(
        num_slots=st.integers(TOP_K, NUM_LAYERS * NUM_EXPERTS),
        spec=st.sampled_from(["lru", "lfu-aged", "least-stale", "reuse-distance"]),
    )
    def start(self, num_slots: int, spec: str) -> None:
        self.table = Residency(num_slots, TOP_K, policy(num_slots, spec))
        self.holds: dict[int, int] = {}
        self.cancelled: set[int] = set()
        self.clock = 0
        self.num_lookups = self.num_evicted = 0

    def take_out(self, evicted: list[tuple[int, int]]) -> None:
        self.num_evicted += len(evicted)
        for key, slot in evicted:
            assert self.holds.pop(slot) == key
            assert slot not in self.on_their_way_before

    def put_in(self, entered: list[tuple[int, int]]) -> None:
        for key, slot in entered:
            assert slot not in self.holds
            assert key not in self.holds.values()
            self.holds[slot] = key

    @property
    def on_their_way(self) -> list[int]:
        return [slot for slot in sorted(self.holds) if self.table.state_of(slot) is SlotState.COMING]

    def remember(self) -> None:
        self.on_their_way_before = set(self.on_their_way)
        self.residents_before = self.table.resident_keys()
        self.live_before = {
            key for key in self.residents_before if self.table.is_on_probation(key) and self.is_live(key)
        }

    def is_live(self, key: int) -> bool:
        return key not in self.table._guesses.gone_by(self.clock)

    @rule(layer=st.integers(0, NUM_LAYERS - 1), experts=st.sets(st.integers(0, NUM_EXPERTS - 1), min_size=1))
    def layer_step(self, layer: int, experts: set[int]) -> None:
        self.clock += 1
        self.remember()
        keys = sorted(layer * NUM_EXPERTS + expert for expert in experts)
        had_leftovers = any(self.table.is_awaited(slot) for slot in self.on_their_way)
        access = self.table.access(layer, keys, self.clock)
        self.num_lookups += len(keys)
        self.take_out(access.evicted)
        self.put_in(access.admitted)
        victims = {key for key, _ in access.evicted}
        served = [key for key, _ in [*access.hits, *access.late, *access.admitted]] + access.passing
        assert sorted(served) == keys
        assert victims.isdisjoint(keys)
        if len(keys) > self.table.num_slots:
            assert not victims
        elif len(keys) <= TOP_K and not had_leftovers and not hasattr(self.table.policy, "choose_admitted"):
            assert not access.passing
        if self.table.num_slots == NUM_LAYERS * NUM_EXPERTS:
            assert not access.passing
        if victims & self.live_before:
            assert self.residents_before - self.live_before <= victims | set(keys)
        assert all(self.table.is_resident(key) for key, _ in access.hits)

    @rule(
        wanted=st.lists(st.tuples(st.integers(0, 23), st.integers(1, 6)), max_size=8),
        held=st.sets(st.integers(0, 23)),
    )
    def guess(self, wanted: list[tuple[int, int]], held: set[int]) -> None:
        self.remember()
        pairs = [(key, self.clock + ahead) for key, ahead in wanted]
        speculation = self.table.speculate(pairs, held, self.clock)
        self.take_out(speculation.evicted)
        self.put_in(speculation.coming)
        victims = {key for key, _ in speculation.evicted}
        assert victims.isdisjoint(held | self.live_before)
        assert len(victims) <= len(speculation.coming)

    @rule(data=st.data())
    def land(self, data: st.DataObject) -> None:
        if on_their_way := self.on_their_way:
            slot = data.draw(st.sampled_from(on_their_way))
            self.table.landed(slot)
            self.cancelled.discard(slot)

    @rule()
    def cancel(self) -> None:
        overdue = self.table.cancel_overdue(self.clock)
        assert self.cancelled.isdisjoint(overdue)
        assert all(self.table.state_of(slot) is SlotState.COMING for slot in overdue)
        self.cancelled.update(overdue)

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        if not self.cancelled:
            return
        slot = data.draw(st.sampled_from(sorted(self.cancelled)))
        self.cancelled.discard(slot)
        if self.table.is_awaited(slot):
            assert self.table.ordered_again(slot) == self.holds[slot]
        else:
            assert self.table.dropped(slot) == self.holds.pop(slot)

    @invariant()
    def every_slot_is_in_one_state_and_every_key_in_one_slot(self) -> None:
        if not hasattr(self, "table"):
            return
        table = self.table
        for slot in range(table.num_slots):
            key = self.holds.get(slot)
            assert table.key_in(slot) == key
            assert (table.state_of(slot) is SlotState.FREE) == (key is None)
            if key is not None:
                assert table.slot_of(key) == slot
                assert table.is_resident(key) == (table.state_of(slot) is SlotState.RESIDENT)
        assert table.num_used == len(self.holds)
        assert table.num_coming == len(self.on_their_way)
        assert table.resident_keys() == {self.holds[s] for s in set(self.holds) - set(self.on_their_way)}

    @invariant()
    def guesses_leave_room_for_one_token(self) -> None:
        if hasattr(self, "table"):
            on_probation = sum(self.table.is_on_probation(key) for key in self.holds.values())
            assert on_probation <= self.table.num_slots - TOP_K
            assert self.table.speculative_room(self.clock) <= self.table.num_slots - TOP_K

    @invariant()
    def the_counters_add_up(self) -> None:
        if not hasattr(self, "table"):
            return
        counters = self.table.counters
        on_probation = sum(self.table.is_on_probation(key) for key in self.holds.values())
        ended = counters.prefetch_used + counters.prefetch_wasted + counters.prefetch_dropped
        assert counters.prefetch_issued == ended + on_probation
        assert counters.lookups == self.num_lookups
        assert counters.evictions == self.num_evicted
        assert counters.prefetch_wasted <= self.table.wasted_now(self.clock) <= counters.prefetch_issued


AnyOrder.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_the_table_keeps_its_promises_in_any_order = AnyOrder.TestCase
