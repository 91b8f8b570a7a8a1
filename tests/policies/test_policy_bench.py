"""Benchmark: replayed lookups a second, and microseconds to choose a victim, for every policy.

On one core, CPU time, over a synthetic trace of DeepSeek-V2-Lite's shape (26 x 64, top-6): Zipf
popularity that drifts, and a third of a token's experts taken over from the token before.
"""

import time
from statistics import median

import numpy as np
import pytest

from compute.layer_steps import LayerSteps, layer_steps
from compute.policies import KNOWN, OFFLINE, named
from compute.policies.base import CacheShape, EvictionPolicy
from compute.replay import Scope, num_slots_of, replay
from compute.trace import Trace

pytestmark = pytest.mark.bench

NUM_TOKENS, NUM_LAYERS, NUM_EXPERTS, TOP_K = 600, 26, 64, 6
#: Million lookups a second that the live objects shall reach.
AIMS = {"lru": 1.0, "lfu-aged": 0.25, "reuse-distance": 0.15}


@pytest.fixture(scope="module")
def steps() -> LayerSteps:
    rng = np.random.default_rng(0)
    experts = np.empty((NUM_TOKENS, NUM_LAYERS, TOP_K), dtype=np.int16)
    weights = 1.0 / np.arange(1, NUM_EXPERTS + 1) ** 0.7
    for layer in range(NUM_LAYERS):
        order = rng.permutation(NUM_EXPERTS)
        for token in range(NUM_TOKENS):
            if token % 150 == 149:
                order = rng.permutation(order)
            chance = np.empty(NUM_EXPERTS)
            chance[order] = weights
            kept = experts[token - 1, layer, : TOP_K // 3] if token else []
            chance[kept] = 0.0
            others = rng.choice(NUM_EXPERTS, TOP_K - len(kept), replace=False, p=chance / chance.sum())
            experts[token, layer] = [*kept, *others]
    return layer_steps(
        Trace(
            experts=experts,
            num_experts=NUM_EXPERTS,
            phase=np.ones(NUM_TOKENS, np.uint8),
            sequence=np.zeros(NUM_TOKENS, np.int32),
        )
    )


def test_replayed_lookups_a_second(steps: LayerSteps) -> None:
    print(f"\n{'policy':16} {'M lookups/s at 25 %':>20} {'at 50 %':>8} {'aim':>6}")
    for name in KNOWN:
        speeds = [_speed(name, steps, capacity) for capacity in (0.25, 0.5)]
        print(f"{name:16} {speeds[0]:>20.3f} {speeds[1]:>8.3f} {AIMS.get(name, ''):>6}")
        assert min(speeds) > 0


def _speed(name: str, steps: LayerSteps, capacity: float) -> float:
    """Million lookups a second of CPU time, the median of three replays."""
    num_slots = num_slots_of(capacity, steps, Scope.GLOBAL)
    speeds = []
    for _ in range(3):
        started = time.process_time()
        outcome = replay(steps, name, num_slots, Scope.GLOBAL)
        speeds.append(outcome.lookups / (time.process_time() - started) / 1e6)
    return median(speeds)


def test_microseconds_to_choose_a_victim(steps: LayerSteps) -> None:
    shape = CacheShape(48, 128, 8, 4096)
    print(f"\n{'policy':16} {'us to choose one victim of 4096':>32}")
    for name in KNOWN.keys() - OFFLINE:
        policy = _filled(named(name, shape), shape)
        chosen = policy.choose_victims(1, frozenset())
        times = []
        for _ in range(200):
            started = time.perf_counter_ns()
            policy.choose_victims(1, frozenset())
            times.append((time.perf_counter_ns() - started) / 1e3)
        print(f"{name:16} {median(times):>32.2f}")
        assert len(chosen) == 1


def _filled(policy: EvictionPolicy, shape: CacheShape) -> EvictionPolicy:
    """`policy` some passes after every slot was taken, layer after layer, and used once."""
    rng = np.random.default_rng(1)
    probs = np.full(shape.num_experts, 1 / shape.num_experts, np.float32)
    on_step = getattr(policy, "on_step", None)
    policy.begin_pass(1, True)
    keys = sorted(rng.choice(shape.num_layers * shape.num_experts, shape.num_slots, replace=False).tolist())
    for layer in range(shape.num_layers):
        mine = [key for key in keys if key // shape.num_experts == layer]
        if on_step:
            on_step(layer, mine, probs)
        for key in mine:
            policy.on_insert(key, False)
        policy.on_access(layer, mine, probs if policy.needs_probs else None)
    for _ in range(64):  # some policies let nobody go who has just come
        policy.begin_pass(1, False)
    return policy
