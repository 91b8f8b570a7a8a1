"""A replay counts what the slot table would have counted."""

from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.layer_steps import LayerSteps, layer_steps
from compute.policies import KNOWN, named
from compute.policies.base import CacheShape, EvictionPolicy, FloatArray
from compute.replay import Outcome, Scope, drive, num_slots_of, replay
from compute.residency import Residency
from compute.trace import Trace

NUM_LAYERS, NUM_EXPERTS, TOP_K = 2, 6, 2


class Watched:
    """Passes everything on and writes down who came and went."""

    def __init__(self, policy: EvictionPolicy) -> None:
        self.policy = policy
        self.needs_probs = policy.needs_probs
        self.log: list[tuple[str, int]] = []
        for name in ("choose_admitted", "on_step", "begin_pass", "on_access"):
            if hasattr(policy, name):
                setattr(self, name, getattr(policy, name))

    begin_pass: object
    on_access: object

    def on_insert(self, key: int, is_speculative: bool) -> None:
        self.log.append(("in", key))
        self.policy.on_insert(key, is_speculative)

    def on_evict(self, key: int) -> None:
        self.log.append(("out", key))
        self.policy.on_evict(key)

    def choose_victims(self, count: int, held: Container[int]) -> list[int]:
        return self.policy.choose_victims(count, held)


def watched(name: str, steps: LayerSteps, num_slots: int) -> Watched:
    shape = CacheShape(steps.num_layers, steps.num_experts, steps.top_k, num_slots)
    return Watched(named(name, shape, steps.future))


def drive_residency(steps: LayerSteps, policy: EvictionPolicy, num_slots: int) -> Residency:
    """The replay as the live runtime would do it: every fetch has landed before the next step."""
    residency = Residency(num_slots, steps.top_k, policy)
    clock = 0
    for each in steps.passes():
        policy.begin_pass(each.num_tokens, each.is_new_sequence)
        for step in each.steps:
            probs = steps.probs(each.number, step) if policy.needs_probs else None
            for _, slot in residency.access(step.layer, step.keys, clock, probs).admitted:
                residency.landed(slot)
            clock += 1
    return residency


def random_trace(rng: np.random.Generator, num_tokens: int, has_passes: bool) -> Trace:
    weights = rng.dirichlet(np.full(NUM_EXPERTS, 0.7), NUM_LAYERS)
    scores = np.log(weights) + rng.gumbel(size=(num_tokens, NUM_LAYERS, NUM_EXPERTS))
    experts = np.argsort(-scores)[:, :, :TOP_K].astype(np.int16)
    experts[rng.random((num_tokens, NUM_LAYERS)) < 0.05] = -1
    passes = np.cumsum(rng.random(num_tokens) < 0.6).astype(np.int32)
    return Trace(
        experts,
        np.zeros(num_tokens, dtype=np.uint8),
        np.sort(rng.integers(0, 3, num_tokens)).astype(np.int32),
        NUM_EXPERTS,
        scores=rng.random(experts.shape).astype(np.float16),
        pass_number=passes if has_passes else None,
    )


@pytest.mark.parametrize("name", KNOWN)
@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.integers(2, 9), st.booleans())
def test_the_lean_replay_equals_the_slot_table(
    name: str, seed: int, num_slots: int, has_passes: bool
) -> None:
    steps = layer_steps(random_trace(np.random.default_rng(seed), 40, has_passes))
    lean, full = watched(name, steps, num_slots), watched(name, steps, num_slots)
    outcome = drive(steps, lean, num_slots)
    counters = drive_residency(steps, full, num_slots).counters
    assert lean.log == full.log
    assert (outcome.lookups, outcome.hits, outcome.misses, outcome.evictions) == (
        counters.lookups,
        counters.hits,
        counters.misses,
        counters.evictions,
    )


def trace_of(experts: list[list[list[int]]], passes: list[int] | None = None) -> LayerSteps:
    tokens = len(experts)
    numbers = None if passes is None else np.array(passes, dtype=np.int32)
    return layer_steps(
        Trace(
            np.array(experts, dtype=np.int16),
            np.zeros(tokens, dtype=np.uint8),
            np.zeros(tokens, dtype=np.int32),
            NUM_EXPERTS,
            pass_number=numbers,
        )
    )


def counted(outcome: Outcome) -> tuple[int, int, int, int]:
    return outcome.lookups, outcome.hits, outcome.misses, outcome.evictions


def test_a_step_is_looked_up_before_anybody_leaves() -> None:
    steps = trace_of([[[0, 1]], [[1, 2]], [[0, 1]]])
    assert counted(replay(steps, "lru", 2)) == (6, 2, 4, 2)


def test_a_step_larger_than_the_cache_evicts_nobody() -> None:
    steps = trace_of([[[0, 1]], [[2, 3]], [[3, 4]], [[0, 1]]], passes=[0, 1, 1, 2])
    assert counted(replay(steps, "lru", 2)) == (7, 2, 5, 0)


def test_a_cold_step_larger_than_the_cache_fills_it_in_order() -> None:
    steps = trace_of([[[5, 3]], [[2, 4]], [[2, 3]]], passes=[0, 0, 1])
    assert counted(replay(steps, "lru", 2)) == (6, 2, 4, 0)


def test_layers_with_a_share_of_their_own_do_not_meet() -> None:
    steps = trace_of([[[0, 1], [0, 1]], [[2, 3], [0, 1]], [[2, 3], [2, 3]]])
    shares = [replay(steps.of_layer(layer), "lru", 2) for layer in range(2)]
    assert counted(replay(steps, "lru", 2, Scope.LAYER)) == counted(shares[0] + shares[1]) == (12, 4, 8, 4)


def test_capacity_is_a_fraction_of_the_experts_a_cache_serves() -> None:
    steps = trace_of([[[0, 1], [0, 1]]])
    assert num_slots_of(0.5, steps, Scope.GLOBAL) == 6
    assert num_slots_of(0.5, steps, Scope.LAYER) == 3
    for wrong in (0.0, -0.5, 1.5, float("nan")):
        with pytest.raises(ValueError, match="fraction"):
            num_slots_of(wrong, steps, Scope.GLOBAL)


def test_fewer_slots_than_a_token_needs_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 slots"):
        replay(trace_of([[[0, 1]]]), "lru", 1)


def test_a_policy_that_names_nobody_lets_the_rest_pass() -> None:
    class Stubborn(Watched):
        def choose_victims(self, count: int, held: Container[int]) -> list[int]:
            return []

    steps = trace_of([[[0, 1]], [[2, 3]], [[0, 1]]])
    lean, full = Stubborn(watched("lru", steps, 2)), Stubborn(watched("lru", steps, 2))
    assert counted(drive(steps, lean, 2)) == (6, 2, 4, 0)
    assert drive_residency(steps, full, 2).counters.misses == 4


OWN = '''
class Newest:
    """Evicts who came last."""

    needs_probs = False

    def __init__(self, shape):
        self.order = []

    def begin_pass(self, num_tokens, is_new_sequence):
        pass

    def on_access(self, layer, keys, probs):
        pass

    def on_insert(self, key, is_speculative):
        self.order.append(key)

    def on_evict(self, key):
        self.order.remove(key)

    def choose_victims(self, count, held):
        return [key for key in reversed(self.order) if key not in held][:count]
'''


def test_a_policy_of_ones_own_is_replayed_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "newest.py"
    path.write_text(OWN)
    steps = trace_of([[[0, 1]], [[2, 3]], [[0, 1]]])
    assert counted(replay(steps, f"{path}:Newest", 3)) == (6, 1, 5, 2)


def test_what_a_policy_is_shown_is_what_it_asked_for() -> None:
    seen: list[FloatArray | None] = []

    class Curious(Watched):
        def on_access(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> None:
            seen.append(probs)

    trace = random_trace(np.random.default_rng(3), 4, has_passes=False)
    steps = layer_steps(trace)
    for name, is_shown in (("lru", False), ("score-ewma", True)):
        seen.clear()
        policy = watched(name, steps, 12)
        curious = Curious(policy)
        del curious.__dict__["on_access"]
        drive(steps, curious, 12)
        assert seen and all((probs is not None) is is_shown for probs in seen)
