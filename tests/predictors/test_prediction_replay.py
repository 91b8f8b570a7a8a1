"""A replay with prefetch counts what the stage would have counted, and times it by a stated rule."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shuffled_transport import ShuffledTransport
from torch import Tensor, nn

from compute.layer_steps import layer_steps
from compute.look_ahead import LookAhead
from compute.modelled_link import ModelledLink
from compute.policies import named as named_policy
from compute.policies.base import CacheShape
from compute.prediction_replay import replay_steps, replay_with_predictor
from compute.predictors import named
from compute.predictors.base import RoutingShape
from compute.predictors.recorded import Recorded
from compute.prefetch import PrefetchPlanner
from compute.replay import Scope, replay
from compute.residency import Residency
from compute.stage import Stage
from compute.timing_model import Link, Moved, timing
from compute.trace import Trace
from protocol.blob import BlobLayout
from protocol.manifest import Manifest, Shard

NUM_LAYERS, NUM_EXPERTS, TOP_K = 3, 8, 2
SPECS = ("previous-token", "st-moe", "gate", "gate+extra=2", "gate+st-moe", "st-moe+gate+combine=ranks")


def random_trace(seed: int, num_tokens: int = 40, has_passes: bool = True, noise: float = 0.4) -> Trace:
    """Skewed routing, and a gate that foresees it but for some noise."""
    rng = np.random.default_rng(seed)
    weights = np.log(rng.dirichlet(np.full(NUM_EXPERTS, 0.8), NUM_LAYERS))
    logits = weights + rng.gumbel(size=(num_tokens, NUM_LAYERS, NUM_EXPERTS))
    predicted = np.full((num_tokens, NUM_LAYERS, 2, TOP_K + 2), -1, dtype=np.int16)
    for ahead in (1, 2):
        seen = logits + noise * ahead * rng.normal(size=logits.shape)
        predicted[:, ahead:, ahead - 1] = np.argsort(-seen)[:, ahead:, : TOP_K + 2]
    passes = np.cumsum(rng.random(num_tokens) < 0.7).astype(np.int32)
    return Trace(
        np.argsort(-logits)[:, :, :TOP_K].astype(np.int16),
        np.zeros(num_tokens, dtype=np.uint8),
        np.sort(rng.integers(0, 3, num_tokens)).astype(np.int32),
        NUM_EXPERTS,
        pass_number=passes if has_passes else None,
        predicted=predicted,
    )


def build_manifest() -> Manifest:
    layout = BlobLayout.pack("none", 0, [("up", "float32", (4, 4))])
    num_keys = NUM_LAYERS * NUM_EXPERTS
    names = tuple(f"layers.{layer}" for layer in range(NUM_LAYERS))
    shards = (Shard("experts-00000.safetensors", 0, num_keys, 4096),)
    return Manifest(
        "olmoe",
        "Olmoe",
        "t",
        "float32",
        False,
        "",
        NUM_EXPERTS,
        TOP_K,
        names,
        layout,
        shards,
        (0,) * num_keys,
    )


class SameRows:
    """A kernel that needs no weights."""

    name = "same"

    def __call__(self, module: nn.Module, blob: Tensor, rows: Tensor) -> Tensor:
        return rows


def run_live(trace: Trace, spec: str, lookahead: int, num_slots: int, policy: str) -> tuple[Residency, Stage]:
    """The trace's routing through a real stage, whose every fetch lands as soon as it may."""
    manifest, steps = build_manifest(), layer_steps(trace)
    blobs = torch.zeros(manifest.num_keys, manifest.layout.stride, dtype=torch.uint8)
    shape = CacheShape(NUM_LAYERS, NUM_EXPERTS, TOP_K, num_slots)
    residency = Residency(num_slots, TOP_K, named_policy(policy, shape))
    predictor = named(
        spec, RoutingShape(NUM_LAYERS, NUM_EXPERTS, TOP_K), lookahead, recorded=Recorded.of(steps)
    )
    planner = PrefetchPlanner(NUM_EXPERTS, TOP_K, manifest.layout.stride, lookahead)
    stage = Stage(
        manifest=manifest,
        residency=residency,
        transport=ShuffledTransport(blobs, num_slots, 2, eagerness=1.0),
        kernel=SameRows(),
        look_ahead=LookAhead(predictor, planner, residency, manifest) if predictor else None,
    )
    for each in steps.passes():
        tokens = slice(*steps.token_of_pass[each.number : each.number + 2])
        stage.begin_pass(each.num_tokens, each.is_new_sequence)
        for layer in range(NUM_LAYERS):
            index = torch.from_numpy(trace.experts[tokens, layer].astype(np.int64))
            stage.run_layer(nn.Module(), layer, torch.ones(len(index), 4), index, torch.ones(index.shape))
    return residency, stage


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    spec=st.sampled_from(SPECS),
    lookahead=st.integers(1, 2),
    num_slots=st.integers(TOP_K, NUM_LAYERS * NUM_EXPERTS),
    policy=st.sampled_from(["lru", "lfu-aged", "least-stale", "arc"]),
)
def test_the_stage_counts_the_same_where_every_fetch_lands_in_time(
    seed: int, spec: str, lookahead: int, num_slots: int, policy: str
) -> None:
    trace = random_trace(seed)
    residency, stage = run_live(trace, spec, lookahead, num_slots, policy)
    outcome = replay_steps(layer_steps(trace), policy, spec, lookahead, num_slots)
    assert outcome.counters == residency.counters
    stride = build_manifest().layout.stride
    assert stage.report()["prefetch_wasted_bytes"] == outcome.wasted * stride


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["lru", "belady", "belady-bypass", "reuse-distance"]),
    st.sampled_from(Scope),
    st.integers(2, 8),
)
def test_without_a_predictor_it_is_the_plain_replay(
    seed: int, policy: str, scope: Scope, num_slots: int
) -> None:
    steps = layer_steps(random_trace(seed, has_passes=False))
    outcome = replay_steps(steps, policy, "none", 0, num_slots, scope)
    counters = outcome.counters
    assert counters.late == counters.prefetch_issued == outcome.wasted == 0
    assert outcome.score.recall is outcome.wasted_share is counters.miss_recall is None
    if policy != "belady-bypass":  # which replays as a bound
        plain = replay(steps, policy, num_slots, scope)
        expected = (plain.lookups, plain.hits, plain.evictions)
        assert (counters.lookups, counters.hits, counters.evictions) == expected


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    spec=st.sampled_from(SPECS),
    lookahead=st.integers(1, 2),
    num_slots=st.integers(TOP_K, NUM_EXPERTS),
    scope=st.sampled_from(Scope),
    rate=st.sampled_from([None, 1e5, 1e6, 1e8]),
)
def test_its_counts_add_up(
    seed: int, spec: str, lookahead: int, num_slots: int, scope: Scope, rate: float | None
) -> None:
    steps = layer_steps(random_trace(seed))
    link = None if rate is None else Link(rate, blob_bytes=100, layer_us=150)
    outcome = replay_steps(steps, "lru", spec, lookahead, num_slots, scope, link)
    counters = outcome.counters
    assert counters.lookups == steps.num_lookups
    assert counters.prefetch_used + counters.prefetch_dropped + outcome.wasted <= counters.prefetch_issued
    assert 0 <= outcome.prefetch_hits <= counters.hits
    assert link or counters.late == 0
    if outcome.total_s is not None and outcome.stall_s is not None:
        assert outcome.total_s == pytest.approx(outcome.stall_s + len(steps.layer) * 150e-6)


def test_a_gate_that_is_always_right_leaves_the_first_layer_s_misses_alone() -> None:
    trace = random_trace(1, num_tokens=200, has_passes=False, noise=0.0)
    outcome = replay_with_predictor(trace, "lru", "gate", 1, capacity=0.5)
    assert outcome.score.recall == outcome.score.precision == 1.0
    steps = layer_steps(trace)
    first = replay(steps, "lru", 12).misses
    assert outcome.counters.misses < first
    assert outcome.counters.prefetch_used >= outcome.counters.prefetch_issued - 1
    only_first = replay_steps(steps, "lru", "gate", 1, num_slots=6, scope=Scope.LAYER).counters
    assert only_first.misses == replay(steps.of_layer(0), "lru", 6).misses


def test_what_the_link_has_no_time_for_is_late_and_still_saves_a_part() -> None:
    trace = random_trace(2, num_tokens=100, has_passes=False, noise=0.0)
    link = Link(rate=1e6, blob_bytes=100, layer_us=80)
    none, gate = (
        replay_with_predictor(trace, "lru", spec, ahead, 0.5, timing=link)
        for spec, ahead in (("none", 0), ("gate", 1))
    )
    in_time = replay_with_predictor(trace, "lru", "gate", 1, 0.5)
    assert gate.counters.late > 0 == in_time.counters.late
    assert gate.counters.misses == in_time.counters.misses
    assert gate.stall_s is not None and none.stall_s is not None
    assert gate.stall_s < none.stall_s


def test_without_prefetch_the_time_is_the_timing_model_s() -> None:
    trace = random_trace(3, num_tokens=60, has_passes=False)
    link = Link(rate=1e6, blob_bytes=100, layer_us=80)
    outcome = replay_with_predictor(trace, "lru", "none", 0, 0.5, timing=link)
    steps = layer_steps(trace)
    expected = timing(Moved(60, len(steps.layer), demanded=outcome.counters.misses), link)
    assert outcome.total_s == pytest.approx(expected.total_s)
    assert outcome.tokens_per_second == pytest.approx(expected.tokens_per_second)


def test_a_result_has_the_names_of_the_live_report() -> None:
    told = replay_with_predictor(random_trace(4), "lru", "gate", 1, 0.5).as_json()
    live = run_live(random_trace(4), "gate", 1, 12, "lru")[1].report()
    shared = set(told) & set(live) - {"stall_s", "prediction_recall", "prediction_precision"}
    assert {"lookups", "hits", "late", "misses", "prefetch_issued", "miss_recall"} <= shared
    assert {name: told[name] for name in shared} == {name: live[name] for name in shared}


@pytest.mark.parametrize(
    ("spec", "lookahead", "expected"),
    [
        ("gate", 3, "predictions 2 layers ahead, not 3"),
        ("gate+extra=3", 1, "4 first experts, not 5"),
        ("oracle", 1, "'oracle'; allowed"),
    ],
)
def test_a_gate_that_the_trace_does_not_hold_is_refused(spec: str, lookahead: int, expected: str) -> None:
    with pytest.raises(ValueError, match=r"\A[^\n]*\Z") as caught:
        replay_with_predictor(random_trace(5), "lru", spec, lookahead, 0.5)
    assert expected in str(caught.value)


def test_a_trace_without_predictions_has_no_gate() -> None:
    trace = replace(random_trace(6), predicted=None)
    with pytest.raises(ValueError, match="record it again"):
        replay_with_predictor(trace, "lru", "gate", 1, 0.5)


# --- the link ------------------------------------------------------------------------------------


def test_without_a_link_every_guess_lands_while_a_layer_computes() -> None:
    link = ModelledLink.of(None)
    link.ask((0, 1), deadline=9)
    link.ask((0, 2), deadline=5)
    assert sorted(link.compute()) == [(0, 1), (0, 2)]
    assert (link.total_s, link.stall_s) == (0.0, 0.0)


def test_the_nearest_deadline_flows_first_and_the_rest_is_waited_for() -> None:
    link = ModelledLink(blob_s=2.0, layer_s=3.0)
    link.ask((0, 1), deadline=9)
    link.ask((0, 2), deadline=5)
    assert link.compute() == [(0, 2)]
    link.wait(num_missing=1, late=[(0, 1)])
    assert (link.stall_s, link.total_s) == (3.0, 6.0)
    assert link.compute() == []


def test_a_dropped_guess_leaves_its_time_to_the_others() -> None:
    link = ModelledLink(blob_s=2.0, layer_s=2.0)
    link.ask((0, 1), deadline=1)
    link.ask((0, 2), deadline=2)
    link.drop((0, 1))
    assert link.compute() == [(0, 2)]
