"""Predictors that need no model: previous token, spatio-temporal, combinations; and their scores."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.layer_steps import layer_steps
from compute.predictors import named
from compute.predictors.base import Prediction, Predictor, RoutingShape
from compute.predictors.combined import Combined, join_ranks, join_union
from compute.predictors.previous_token import PreviousToken
from compute.predictors.scored import Scored
from compute.predictors.spatio_temporal import SpatioTemporal
from compute.trace_file import read

SHAPE = RoutingShape(num_layers=3, num_experts=8, top_k=2)
DATA = Path(__file__).parents[1] / "data"
#: The model card's share of experts repeated from the previous token, layers 1 to 5.
REPEATED = {"bible": [0.280, 0.281, 0.303, 0.354, 0.358], "code": [0.278, 0.301, 0.311, 0.283, 0.446]}

Token = Sequence[Sequence[int]]


def run(predictor: Predictor, tokens: Sequence[Token], is_new: bool = False) -> list[Prediction]:
    """Show the tokens' choices, layer by layer; what is predicted in the last token."""
    said: list[Prediction] = []
    for token in tokens:
        predictor.begin_pass(1, is_new)
        said = []
        for layer, chosen in enumerate(token):
            predictor.observe(layer, chosen)
            said += predictor.predict(layer, None, chosen)
    return said


def test_a_layer_wants_what_it_wanted_last() -> None:
    said = run(PreviousToken(SHAPE, 1), [[[0, 1], [2, 3], [4, 5]], [[0, 1], [6, 7], [0, 1]]])
    assert said == [Prediction(1, [2, 3]), Prediction(2, [4, 5])]


def test_a_first_token_has_no_previous_one() -> None:
    tokens = [[[0, 1], [2, 3], [4, 5]]]
    predictor = PreviousToken(SHAPE, 2)
    assert run(predictor, tokens) == []
    assert run(predictor, tokens, is_new=True) == []


def test_several_previous_tokens_vote_and_the_latest_comes_first() -> None:
    tokens = [[[0], [1, 2], [0]], [[0], [2, 3], [0]], [[0], [7], [0]]]
    said = run(PreviousToken(SHAPE, 1, tokens=2), tokens)
    assert said[0] == Prediction(1, [2, 3, 1])


def test_what_follows_across_layers_is_learnt() -> None:
    follows = {0: [2, 3], 1: [4, 5], 6: [0, 7]}
    tokens = [[[a], follows[a], [0]] for a in (0, 1, 6) * 5]
    said = run(SpatioTemporal(SHAPE, 1, blend=1.0), [*tokens, [[1], [4, 5], [0]]])
    assert said[0] == Prediction(1, [4, 5])


def test_history_alone_names_what_was_used_of_late() -> None:
    tokens = [[[0], [1, 2], [0]]] * 3 + [[[0], [1, 3], [0]]] * 9 + [[[0], [5, 6], [0]]]
    said = run(SpatioTemporal(SHAPE, 1, blend=0.0, history=0.8), tokens)
    assert said[0] == Prediction(1, [1, 3])


def test_correlations_reach_as_far_as_the_lookahead() -> None:
    tokens = [[[a], [7], [a, a + 1]] for a in (0, 2, 4) * 5]
    said = run(SpatioTemporal(SHAPE, 2, blend=1.0), [*tokens, [[2], [7], [2, 3]]])
    assert said[1] == Prediction(2, [2, 3])


def test_an_old_correlation_fades_before_a_new_one() -> None:
    tokens = [[[0], [1], [0]]] * 20 + [[[0], [2], [0]]] * 6
    said = run(SpatioTemporal(SHAPE, 1, blend=1.0, decay=0.8), tokens)
    assert said[0].experts[0] == 2


def test_without_experience_nothing_is_named() -> None:
    assert run(SpatioTemporal(SHAPE, 2), [[[0, 1], [2, 3], [4, 5]]]) == []


def test_extra_experts_are_named_after_the_best() -> None:
    rng = np.random.default_rng(0)
    tokens = [[sorted(rng.choice(8, 2, replace=False).tolist()) for _ in range(3)] for _ in range(50)]
    few, many = run(SpatioTemporal(SHAPE, 1), tokens), run(SpatioTemporal(SHAPE, 1, extra=3), tokens)
    for narrow, wide in zip(few, many, strict=True):
        assert len(wide.experts) == 5
        assert wide.experts[:2] == narrow.experts


@settings(deadline=None, max_examples=30)
@given(
    spec=st.sampled_from(
        [
            "previous-token+tokens=3",
            "st-moe+extra=2",
            "st-moe+previous-token",
            "st-moe+previous-token+combine=ranks",
        ]
    ),
    seed=st.integers(0, 10_000),
    lookahead=st.integers(1, 3),
    num_tokens=st.integers(1, 12),
)
def test_predictions_are_of_later_layers_nearest_first_and_name_distinct_experts(
    spec: str, seed: int, lookahead: int, num_tokens: int
) -> None:
    rng = np.random.default_rng(seed)
    predictor = named(spec, SHAPE, lookahead)
    assert predictor is not None
    for _ in range(num_tokens):
        predictor.begin_pass(1, bool(rng.random() < 0.2))
        for layer in range(SHAPE.num_layers):
            chosen = np.flatnonzero(rng.random(8) < 0.4).tolist() or [0]
            predictor.observe(layer, chosen)
            said = predictor.predict(layer, None, chosen)
            targets = [prediction.layer for prediction in said]
            assert targets == sorted(set(targets))
            assert set(targets) <= set(SHAPE.layers_after(layer, lookahead))
            for prediction in said:
                assert prediction.experts and set(prediction.experts) <= set(range(8))
                assert len(set(prediction.experts)) == len(prediction.experts)


def test_a_union_is_the_first_answer_and_what_the_next_one_adds() -> None:
    assert join_union([[3, 1], [1, 5]]) == [3, 1, 5]


def test_a_rank_average_is_no_wider_than_its_widest_answer() -> None:
    assert join_ranks([[3, 1, 2], [1, 5]]) == [1, 3, 5]
    assert join_ranks([[3, 1], [3, 1]]) == [3, 1]


class Says:
    """Names the same experts every time."""

    name = "says"

    def __init__(self, lookahead: int, experts: list[int], notice: str = "") -> None:
        self.lookahead = lookahead
        self.notices = [notice] if notice else []
        self.experts = experts
        self.is_closed = False

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        pass

    def observe(self, layer: int, chosen: Sequence[int]) -> None:
        pass

    def predict(self, layer: int, residual: object, chosen: Sequence[int]) -> list[Prediction]:
        return [Prediction(target, self.experts) for target in SHAPE.layers_after(layer, self.lookahead)]

    def close(self) -> None:
        self.is_closed = True


def test_a_combination_speaks_for_all_of_its_members() -> None:
    members = [Says(1, [1, 2], "one"), Says(2, [2, 3], "two")]
    combined = Combined(members)
    assert (combined.lookahead, combined.notices) == (2, ["one", "two"])
    assert combined.predict(0, None, [0]) == [Prediction(1, [1, 2, 3]), Prediction(2, [2, 3])]
    combined.close()
    assert all(member.is_closed for member in members)


def test_a_score_counts_what_was_said_what_came_and_both() -> None:
    scored = Scored(Says(2, [1, 2, 3]))
    run(scored, [[[0, 1], [1, 2], [3, 4]]])
    near, far = scored.by_distance
    assert (near.wanted, near.predicted, near.right) == (4, 6, 3)
    assert (far.wanted, far.predicted, far.right) == (2, 3, 1)
    assert scored.score.recall == pytest.approx(4 / 6)
    assert scored.score.precision == pytest.approx(4 / 9)


def test_where_nothing_was_predicted_there_is_no_score() -> None:
    scored = Scored(Says(1, [1]))
    assert scored.score.recall is None and scored.score.precision is None


@pytest.mark.parametrize("domain", REPEATED)
def test_previous_token_s_recall_is_near_the_model_card_s(domain: str) -> None:
    trace = read(DATA / f"tiny_moe_{domain}_400.npz")
    scored = Scored(PreviousToken(RoutingShape(6, 32, 4), 1))
    for each in layer_steps(trace).passes():
        scored.begin_pass(1, each.is_new_sequence)
        for step in each.steps:
            chosen = [key - step.layer * 32 for key in step.keys]
            scored.observe(step.layer, chosen)
            scored.predict(step.layer, None, chosen)
    assert scored.score.recall == pytest.approx(np.mean(REPEATED[domain]), abs=0.05)
    assert scored.score.recall == scored.score.precision
