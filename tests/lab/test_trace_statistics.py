"""Popularity and overlap, against what the definition says of small traces."""

import numpy as np
import pytest

from compute.trace import Trace
from compute.trace_statistics import layer_statistics, popularity


def trace_of(experts: list[list[list[int]]], num_experts: int, sequence: list[int] | None = None) -> Trace:
    num_tokens = len(experts)
    return Trace(
        np.array(experts, dtype=np.int16),
        phase=np.zeros(num_tokens, np.uint8),
        sequence=np.array(sequence or [0] * num_tokens, dtype=np.int32),
        num_experts=num_experts,
    )


def test_popularity_is_each_experts_share_of_its_layers_uses() -> None:
    shares = popularity(trace_of([[[0, 1]], [[0, 2]]], num_experts=4))
    assert shares.tolist() == [[0.5, 0.25, 0.25, 0.0]]


def test_experts_that_are_all_alike_have_entropy_1() -> None:
    (layer,) = layer_statistics(trace_of([[[0, 1]], [[2, 3]]], num_experts=4))
    assert layer.entropy == pytest.approx(1.0)
    assert layer.busiest_quarter == pytest.approx(0.25)


def test_one_expert_that_does_everything_has_entropy_0() -> None:
    (layer,) = layer_statistics(trace_of([[[3]], [[3]]], num_experts=8))
    assert layer.entropy == 0.0
    assert layer.busiest_quarter == 1.0


def test_overlap_counts_what_the_token_before_used() -> None:
    (layer,) = layer_statistics(trace_of([[[0, 1]], [[1, 2]], [[2, 1]]], num_experts=4))
    assert layer.overlap == pytest.approx((1 + 2) / 4)


def test_overlap_stays_within_a_sequence_and_within_what_was_computed() -> None:
    apart = trace_of([[[0, 1]], [[0, 1]]], num_experts=4, sequence=[0, 1])
    skipped = trace_of([[[0, 1]], [[-1, -1]], [[0, 1]]], num_experts=4)
    assert layer_statistics(apart)[0].overlap is None
    assert layer_statistics(skipped)[0].overlap is None
    assert layer_statistics(skipped)[0].num_tokens == 2
