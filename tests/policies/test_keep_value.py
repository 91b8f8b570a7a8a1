"""What keeping an expert is worth: learnt from use, the same to the last bit compiled or not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.layer_steps import layer_steps
from compute.policies import compiled_keep_value, reuse_distance
from compute.policies.base import CacheShape, FloatArray
from compute.policies.compiled_keep_value import CompiledKeepValue, keep_value
from compute.policies.keep_value import KeepValue
from compute.policies.reuse_distance import ReuseDistance
from compute.policies.reuse_distance_probs import ReuseDistanceProbs
from compute.replay import drive
from compute.trace import Trace

LEARNT = ("usage", "visits", "follows", "pulls", "routed", "weights", "squares", "features", "pulled")

needs_library = pytest.mark.skipif(
    not compiled_keep_value.LIBRARY.is_file(), reason="keep_value.c is not compiled: there is no C compiler"
)

shapes = st.builds(CacheShape, st.integers(1, 8), st.integers(2, 19), st.integers(1, 2), st.just(4))


def probs_of(rng: np.random.Generator, num_experts: int) -> FloatArray | None:
    return rng.dirichlet(np.ones(num_experts)).astype(np.float32) if rng.random() < 0.7 else None


@needs_library
@settings(deadline=None, max_examples=40)
@given(shapes, st.integers(0, 2**32 - 1), st.floats(0.3, 0.95))
def test_compiled_and_numpy_agree_to_the_last_bit(shape: CacheShape, seed: int, gamma: float) -> None:
    rng = np.random.default_rng(seed)
    both = CompiledKeepValue(shape, gamma), KeepValue(shape, gamma)
    for _ in range(25):
        if rng.random() < 0.1:
            for one in both:
                one.begin_sequence()
        for layer in range(shape.num_layers):
            is_wide = rng.random() < 0.1
            size = rng.integers(1, shape.num_experts + 1) if is_wide else shape.top_k
            chosen = np.sort(rng.choice(shape.num_experts, size, replace=False))
            keys = (chosen + layer * shape.num_experts).tolist()
            probs = probs_of(rng, shape.num_experts)
            compiled, plain = (one.observe(layer, keys, probs) for one in both)
            np.testing.assert_array_equal(compiled, plain)
            assert plain.min() > 0.0 and plain.max() < 1.0
    for name in LEARNT:
        np.testing.assert_array_equal(getattr(both[0], f"_{name}"), getattr(both[1], f"_{name}"), name)


def random_trace(seed: int) -> Trace:
    rng = np.random.default_rng(seed)
    experts = np.argsort(rng.gumbel(size=(150, 4, 12)) + np.linspace(0, 3, 12))[:, :, -3:]
    return Trace(
        experts=experts.astype(np.int16),
        num_experts=12,
        phase=np.ones(150, np.uint8),
        sequence=np.repeat(np.arange(3, dtype=np.int32), 50),
        probs=rng.dirichlet(np.ones(12), size=(150, 4)).astype(np.float16),
    )


def replayed(trace: Trace, policy_class: type[ReuseDistance] = ReuseDistance) -> tuple[int, list[list[int]]]:
    """(misses, everybody it let in and let go)."""
    log: list[list[int]] = []

    class Told(policy_class):  # type: ignore[misc, valid-type]
        def choose_admitted(self, *args: Any) -> list[int]:
            log.append(super().choose_admitted(*args))
            return log[-1]

        def choose_victims(self, *args: Any) -> list[int]:
            log.append(super().choose_victims(*args))
            return log[-1]

    return drive(layer_steps(trace), Told(CacheShape(4, 12, 3, 14)), 14).misses, log


@needs_library
@pytest.mark.parametrize("seed", range(3))
def test_compiled_and_numpy_choose_the_same_victims(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = random_trace(seed)
    compiled = replayed(trace, ReuseDistanceProbs)
    monkeypatch.setattr(reuse_distance, "keep_value", KeepValue)
    plain = replayed(trace, ReuseDistanceProbs)
    assert compiled == plain
    assert sum(map(len, plain[1])) > 100


def test_an_expert_that_follows_another_is_worth_more_after_it() -> None:
    value = KeepValue(CacheShape(1, 8, 1, 4), gamma=0.7)
    rng = np.random.default_rng(3)
    for _ in range(300):
        first = int(rng.integers(0, 4))
        for key in (first, 7 - first):  # 0 is followed by 7, 1 by 6, ...
            worth = value.observe(0, [key], None).copy()
    for first in range(4):
        worth = value.observe(0, [first], None).copy()
        assert worth.argmax() == 7 - first
        value.observe(0, [7 - first], None)


def test_the_router_is_heard_where_it_tells_of_all_experts() -> None:
    trace = random_trace(0)
    assert replayed(trace, ReuseDistanceProbs) != replayed(trace)


def test_a_trace_that_kept_only_the_chosen_ones_scores_counts_as_choices_alone() -> None:
    trace = random_trace(0)
    scores = np.full(trace.experts.shape, 0.3, np.float16)
    kept = Trace(trace.experts, trace.phase, trace.sequence, 12, scores=scores)
    assert replayed(kept, ReuseDistanceProbs) == replayed(trace)


def test_who_is_worth_less_than_all_others_is_served_without_a_slot() -> None:
    policy = ReuseDistance(CacheShape(1, 6, 1, 4))
    for number in range(60):
        policy.begin_pass(1, number == 0)
        policy.on_step(0, [number % 4], None)
    for key in range(4):
        policy.on_insert(key, False)
    policy.begin_pass(1, False)
    policy.on_step(0, [5], None)
    assert policy.choose_admitted([5], 0, {5}) == []
    assert policy.choose_admitted([5], 1, {5}) == [5]


def test_without_the_library_numpy_serves_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled_keep_value, "LIBRARY", tmp_path / "libkeepvalue.so")
    compiled_keep_value._library.cache_clear()
    try:
        built = [keep_value(CacheShape(1, 4, 1, 2), 0.7) for _ in range(2)]
    finally:
        compiled_keep_value._library.cache_clear()
    assert [type(one) for one in built] == [KeepValue, KeepValue]
    (said,) = (record.message for record in caplog.records)
    assert "python -m compute.kernels.build, or pass --policy lru" in said
