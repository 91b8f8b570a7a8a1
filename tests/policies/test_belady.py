"""Belady against every choice there is, on small instances.

For belady itself, no step needs more experts than there are slots: where one does, nobody is
admitted, and who is used next no longer tells who is worth most.
"""

from functools import cache
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from compute.policies.base import CacheShape
from compute.policies.belady import Belady
from compute.policies.belady_bypass import BeladyBypass
from compute.policies.future import Future
from compute.residency import Residency

NUM_EXPERTS = 7
TOP_K = 2
States = frozenset[int]
step = st.sets(st.integers(0, NUM_EXPERTS - 1), min_size=1, max_size=3).map(sorted)
steps_strategy = st.lists(step, min_size=1, max_size=10)


def fewest_misses(steps: list[list[int]], num_slots: int, may_pass: bool) -> int:
    """The least number of misses over all choices of victims, or (if they may pass) of who stays at all."""

    @cache
    def best(at: int, resident: States) -> int:
        if at == len(steps):
            return 0
        used = frozenset(steps[at])
        missing = used - resident
        states = (passing if may_pass else admitting)(resident, used, num_slots)
        return len(missing) + min(best(at + 1, state) for state in states)

    return best(0, frozenset())


def admitting(resident: States, used: States, num_slots: int) -> set[States]:
    """Every cache that may follow if all of `used` enter and only others leave."""
    num_leaving = max(len(resident | used) - num_slots, 0)
    return {(resident | used) - set(leaving) for leaving in combinations(resident - used, num_leaving)}


def passing(resident: States, used: States, num_slots: int) -> set[States]:
    """Every cache that may follow if anybody may stay out or leave."""
    at_hand = resident | used
    sizes = range(min(len(at_hand), num_slots) + 1)
    return {frozenset(kept) for size in sizes for kept in combinations(at_hand, size)}


def misses_of(policy_class: type[Belady], steps: list[list[int]], num_slots: int) -> int:
    policy = policy_class(CacheShape(1, NUM_EXPERTS, TOP_K, num_slots), steps)
    residency = Residency(num_slots, TOP_K, policy)
    for clock, keys in enumerate(steps):
        for _, slot in residency.access(0, keys, clock).admitted:
            residency.landed(slot)
    return residency.counters.misses


@settings(deadline=None, max_examples=150)
@given(steps_strategy, st.integers(3, 5))
def test_belady_equals_brute_force(steps: list[list[int]], num_slots: int) -> None:
    assert misses_of(Belady, steps, num_slots) == fewest_misses(steps, num_slots, may_pass=False)


@settings(deadline=None, max_examples=150)
@given(steps_strategy, st.integers(2, 5))
def test_belady_bypass_equals_brute_force(steps: list[list[int]], num_slots: int) -> None:
    bound = BeladyBypass(CacheShape(1, NUM_EXPERTS, TOP_K, num_slots), steps)
    assert bound.fewest_misses()[0] == fewest_misses(steps, num_slots, may_pass=True)


@given(steps_strategy)
def test_the_future_knows_every_next_use(steps: list[list[int]]) -> None:
    future = Future.of(steps)
    flat = [(at, key) for at, keys in enumerate(steps) for key in keys]
    expected = [
        next((later for later in range(at + 1, len(steps)) if key in steps[later]), future.never)
        for at, key in flat
    ]
    assert future.next_uses().tolist() == expected
    assert [future.next_use_after(at, key) for at, key in flat] == expected
    assert list(future) == steps
