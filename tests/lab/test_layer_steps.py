"""Tokens become forward passes, and a pass's experts layer-steps."""

import numpy as np
import pytest

from compute.layer_steps import LayerSteps, Step, layer_steps
from compute.trace import Trace


def trace_of(experts: list[list[list[int]]], **columns: list[int]) -> Trace:
    """A trace of four experts; `sequence` and `pass_number` may be given."""
    num_tokens = len(experts)
    return Trace(
        np.array(experts, dtype=np.int16),
        np.zeros(num_tokens, dtype=np.uint8),
        np.array(columns.get("sequence", [0] * num_tokens), dtype=np.int32),
        num_experts=4,
        pass_number=np.array(columns["passes"], dtype=np.int32) if "passes" in columns else None,
    )


def steps_by_pass(steps: LayerSteps) -> list[list[tuple[int, list[int]]]]:
    return [[tuple(step) for step in each.steps] for each in steps.passes()]


TWO_TOKENS = [[[1, 0], [2, 3]], [[1, 2], [3, 0]]]


def test_each_token_is_a_pass_of_its_own() -> None:
    assert steps_by_pass(layer_steps(trace_of(TWO_TOKENS))) == [
        [(0, [0, 1]), (1, [6, 7])],
        [(0, [1, 2]), (1, [4, 7])],
    ]


def test_tokens_of_one_pass_share_their_layer_steps() -> None:
    steps = layer_steps(trace_of(TWO_TOKENS, passes=[7, 7]))
    assert steps_by_pass(steps) == [[(0, [0, 1, 2]), (1, [4, 6, 7])]]
    assert [each.num_tokens for each in steps.passes()] == [2]
    assert steps.num_lookups == 6


def test_what_was_not_computed_is_no_step() -> None:
    steps = layer_steps(trace_of([[[-1, -1], [-1, 2]], [[-1, -1], [-1, -1]], [[0, 1], [2, 3]]]))
    assert steps_by_pass(steps) == [[(1, [6])], [], [(0, [0, 1]), (1, [6, 7])]]


def test_a_new_sequence_is_told() -> None:
    steps = layer_steps(trace_of([[[0, 1]]] * 5, sequence=[3, 3, 5, 5, 3]))
    assert [each.is_new_sequence for each in steps.passes()] == [True, False, True, False, True]


def test_many_passes_come_in_order() -> None:
    rng = np.random.default_rng(0)
    experts = np.array([rng.permutation(4)[:2] for _ in range(3000)])[:, None, :]
    steps = layer_steps(trace_of(experts.tolist()))
    assert [step.keys for each in steps.passes() for step in each.steps] == np.sort(experts[:, 0]).tolist()
    assert [each.number for each in steps.passes()] == list(range(3000))


def test_one_layer_alone_has_its_own_keys_and_all_passes() -> None:
    steps = layer_steps(trace_of([*TWO_TOKENS, [[0, 1], [-1, -1]]])).of_layer(1)
    assert steps.num_layers == 1
    assert steps_by_pass(steps) == [[(0, [2, 3])], [(0, [0, 3])], []]
    assert list(steps.future) == [[2, 3], [0, 3]]


def test_the_future_holds_every_step() -> None:
    assert list(layer_steps(trace_of(TWO_TOKENS)).future) == [[0, 1], [6, 7], [1, 2], [4, 7]]


def test_a_policy_sees_the_mean_distribution_of_a_pass() -> None:
    whole = trace_of(TWO_TOKENS, passes=[0, 0])
    probs = np.random.default_rng(1).random((2, 2, 4)).astype(np.float16)
    trace = Trace(whole.experts, whole.phase, whole.sequence, 4, probs=probs, pass_number=whole.pass_number)
    seen = layer_steps(trace).probs(0, Step(1, [4, 6, 7]))
    assert seen == pytest.approx(probs[:, 1].astype(np.float32).mean(axis=0))
    alone = layer_steps(trace).of_layer(1)
    assert alone.probs(0, Step(0, [0, 2, 3])) == pytest.approx(seen)


def test_where_only_scores_are_known_the_others_are_nan() -> None:
    whole = trace_of(TWO_TOKENS, passes=[0, 0])
    scores = np.full((2, 2, 2), 0.5, dtype=np.float16)
    trace = Trace(whole.experts, whole.phase, whole.sequence, 4, scores, pass_number=whole.pass_number)
    seen = layer_steps(trace).probs(0, Step(0, [0, 1, 2]))
    assert np.array_equal(seen, [0.25, 0.5, 0.25, np.nan], equal_nan=True)


def test_what_was_not_computed_is_not_in_the_mean() -> None:
    whole = trace_of([[[0, 1]], [[-1, -1]], [[3, -1]]], passes=[0, 0, 0])
    scores = np.where(whole.experts < 0, 0.0, 0.5).astype(np.float16)
    trace = Trace(whole.experts, whole.phase, whole.sequence, 4, scores, pass_number=whole.pass_number)
    seen = layer_steps(trace).probs(0, Step(0, [0, 1, 3]))
    assert np.array_equal(seen, [0.25, 0.25, np.nan, 0.25], equal_nan=True)


def test_without_scores_nothing_is_known() -> None:
    assert layer_steps(trace_of(TWO_TOKENS)).probs(0, Step(0, [0, 1])) is None


def test_a_trace_is_cut_to_its_first_tokens() -> None:
    assert trace_of(TWO_TOKENS, passes=[0, 1]).first(1).num_tokens == 1
    with pytest.raises(ValueError, match="at least 1"):
        trace_of(TWO_TOKENS).first(0)
