"""Which experts a gate's logits put first."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.predictors.ranking import Width, most_wanted, rank, rank_one

LOGITS = np.array([[0.1, 0.9, 0.5, 0.7, 0.3]], dtype=np.float32)


def test_the_chosen_come_by_logit() -> None:
    assert rank(LOGITS, np.array([[3, 1]]), 2).tolist() == [[1, 3]]


def test_the_chosen_come_before_others_whatever_their_logits() -> None:
    assert rank(LOGITS, np.array([[0, 4]]), 4).tolist() == [[4, 0, 1, 3]]


def test_among_equal_logits_the_lower_number_is_first() -> None:
    level = np.zeros((1, 5), dtype=np.float32)
    assert rank(level, np.array([[4, 2]]), 4).tolist() == [[2, 4, 0, 1]]


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(2, 12), st.data())
def test_a_row_names_distinct_experts_and_narrower_rows_are_its_beginning(
    seed: int, num_tokens: int, num_experts: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    top_k = data.draw(st.integers(1, num_experts))
    named = data.draw(st.integers(top_k, num_experts))
    logits = rng.integers(0, 4, (num_tokens, num_experts)).astype(np.float32)
    chosen = np.argsort(-logits, axis=1)[:, :top_k]
    ranks = rank(logits, chosen, named)
    assert ranks.shape == (num_tokens, named)
    assert all(len(set(row)) == named for row in ranks.tolist())
    assert np.array_equal(rank(logits, chosen, top_k), ranks[:, :top_k])
    assert np.array_equal(np.sort(ranks[:, :top_k], 1), np.sort(chosen, 1))
    for row, some, ranked in zip(logits.tolist(), chosen.tolist(), ranks.tolist(), strict=True):
        assert rank_one(row, some, named) == ranked


def test_one_token_s_experts_stay_in_their_order() -> None:
    assert most_wanted(np.array([[5, 2, 7, -1]], dtype=np.int16)) == [5, 2, 7]


def test_many_tokens_vote_first_and_places_decide_between_equals() -> None:
    ranks = np.array([[0, 1, 2], [3, 1, 2], [4, 2, 1]], dtype=np.int16)
    assert most_wanted(ranks) == [1, 2, 0, 3, 4]


def test_where_nothing_is_named_nothing_is_wanted() -> None:
    assert most_wanted(np.full((3, 2), -1, dtype=np.int16)) == []
    assert most_wanted(np.full((1, 2), -1, dtype=np.int16)) == []


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (Width(), 4),
        (Width(extra=3), 7),
        (Width(extra=99), 32),
        (Width(percentile=75), 8),
        (Width(percentile=90), 4),
        (Width(percentile=95), 4),
        (Width(percentile=0), 32),
    ],
)
def test_a_widened_gate_names_no_fewer_than_a_token_uses(width: Width, expected: int) -> None:
    assert width.of(top_k=4, num_experts=32) == expected
