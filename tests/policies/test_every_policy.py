"""What every policy keeps: asking changes nothing, victims are residents, nobody beats the bounds."""

from collections.abc import Container, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.policies import KNOWN, OFFLINE, named
from compute.policies.base import CacheShape, EvictionPolicy, FloatArray
from compute.policies.belady_bypass import BeladyBypass
from compute.residency import Residency

NUM_LAYERS, NUM_EXPERTS = 3, 5
SHAPE = CacheShape(NUM_LAYERS, NUM_EXPERTS, top_k=2, num_slots=5)
Steps = list[list[int]]

#: Passes over all layers; each layer-step uses one to four of its layer's experts.
layer_sets = st.sets(st.integers(0, NUM_EXPERTS - 1), min_size=1, max_size=4)
pass_sets = st.lists(layer_sets, min_size=NUM_LAYERS, max_size=NUM_LAYERS)
passes = st.lists(pass_sets, min_size=1, max_size=12)


def steps_of(chosen: list[list[set[int]]]) -> Steps:
    return [
        sorted(layer * NUM_EXPERTS + expert for expert in experts)
        for sets in chosen
        for layer, experts in enumerate(sets)
    ]


def probs_of(keys: Sequence[int]) -> FloatArray:
    probs = np.full(NUM_EXPERTS, 0.1, dtype=np.float32)
    probs[np.array(keys) % NUM_EXPERTS] = 0.3
    return probs


class Watched:
    """Passes everything on, writes down who came and went, and asks twice as often if told to."""

    def __init__(self, policy: EvictionPolicy, is_curious: bool) -> None:
        self.policy = policy
        self.needs_probs = policy.needs_probs
        self.is_curious = is_curious
        self.log: list[tuple[str, int]] = []
        self.resident: set[int] = set()
        for name in ("choose_admitted", "on_step"):
            if hasattr(policy, name):
                setattr(self, name, getattr(policy, name))

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        self.policy.begin_pass(num_tokens, is_new_sequence)

    def on_access(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> None:
        self.policy.on_access(layer, keys, probs)
        if self.is_curious:
            for count in (1, 3, len(self.resident)):
                self.ask(count, set(keys))

    def on_insert(self, key: int, is_speculative: bool) -> None:
        self.resident.add(key)
        self.log.append(("in", key))
        self.policy.on_insert(key, is_speculative)

    def on_evict(self, key: int) -> None:
        self.resident.remove(key)
        self.log.append(("out", key))
        self.policy.on_evict(key)

    def choose_victims(self, count: int, held: Container[int]) -> list[int]:
        if self.is_curious:
            self.ask(count + 1, held)
        return self.ask(count, held)

    def ask(self, count: int, held: Container[int]) -> list[int]:
        victims = self.policy.choose_victims(count, held)
        assert len(set(victims)) == len(victims) <= count
        assert all(key in self.resident and key not in held for key in victims)
        if not hasattr(self.policy, "choose_admitted"):
            movable = sum(key not in held for key in self.resident)
            assert len(victims) == min(count, movable)
        return victims


def run(name: str, steps: Steps, num_slots: int = 5, is_curious: bool = False) -> tuple[Watched, Residency]:
    shape = CacheShape(NUM_LAYERS, NUM_EXPERTS, SHAPE.top_k, num_slots)
    watched = Watched(named(name, shape, steps), is_curious)
    residency = Residency(num_slots, SHAPE.top_k, watched)
    for clock, keys in enumerate(steps):
        layer = clock % NUM_LAYERS
        if layer == 0:
            watched.begin_pass(1, clock == 0)
        access = residency.access(layer, keys, clock, probs_of(keys))
        for _, slot in access.admitted:
            residency.landed(slot)
    return watched, residency


@pytest.mark.parametrize("name", KNOWN)
@settings(deadline=None, max_examples=25)
@given(passes)
def test_asking_changes_nothing(name: str, chosen: list[list[set[int]]]) -> None:
    steps = steps_of(chosen)
    quiet, _ = run(name, steps)
    curious, _ = run(name, steps, is_curious=True)
    assert quiet.log == curious.log


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in OFFLINE])
@settings(deadline=None, max_examples=25)
@given(passes, st.lists(st.integers(0, NUM_LAYERS * NUM_EXPERTS - 1), max_size=12), st.integers(0, 1))
def test_guesses_may_come_land_drop_and_leave(
    name: str, chosen: list[list[set[int]]], guesses: list[int], fate: int
) -> None:
    num_slots = 6
    shape = CacheShape(NUM_LAYERS, NUM_EXPERTS, SHAPE.top_k, num_slots)
    watched = Watched(named(name, shape), is_curious=True)
    residency = Residency(num_slots, SHAPE.top_k, watched)
    for clock, keys in enumerate(steps_of(chosen)):
        if clock % NUM_LAYERS == 0:
            watched.begin_pass(1, clock == 0)
        access = residency.access(clock % NUM_LAYERS, keys, clock, probs_of(keys))
        for _, slot in access.admitted + access.late:
            residency.landed(slot)
        wanted = [(key, clock + 1) for key in guesses[clock : clock + 2]]
        for number, (_, slot) in enumerate(residency.speculate(wanted, set(keys), clock).coming):
            (residency.dropped if number % 2 == fate else residency.landed)(slot)
    assert watched.resident == residency.resident_keys()


@pytest.mark.parametrize("name", [name for name in KNOWN if name != "belady-bypass"])
@settings(deadline=None, max_examples=25)
@given(passes, st.integers(2, 9))
def test_nobody_beats_the_bounds(name: str, chosen: list[list[set[int]]], num_slots: int) -> None:
    steps = steps_of(chosen)
    watched, cache = run(name, steps, num_slots)
    bound = BeladyBypass(CacheShape(NUM_LAYERS, NUM_EXPERTS, SHAPE.top_k, num_slots), steps)
    assert cache.counters.misses >= bound.fewest_misses()[0]
    if max(map(len, steps)) <= num_slots and not hasattr(watched, "choose_admitted"):
        assert cache.counters.misses >= run("belady", steps, num_slots)[1].counters.misses


@settings(deadline=None)
@given(passes, st.integers(2, 8))
def test_least_stale_is_lru_when_nothing_is_prefetched(chosen: list[list[set[int]]], num_slots: int) -> None:
    steps = steps_of(chosen)
    assert run("least-stale", steps, num_slots)[0].log == run("lru", steps, num_slots)[0].log
