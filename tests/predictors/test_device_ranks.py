"""Ranking on the device: the same experts in the same order as on the host."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from compute.beside.device_ranks import rank_on_device
from compute.predictors.ranking import rank


@given(
    num_tokens=st.integers(1, 5),
    num_experts=st.integers(4, 40),
    top_k=st.integers(1, 4),
    extra=st.integers(0, 6),
    seed=st.integers(0, 2**16),
)
def test_the_chosen_first_then_others_by_logit(
    num_tokens: int, num_experts: int, top_k: int, extra: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    logits = random.permuted(np.tile(np.arange(num_experts, dtype=np.float32), (num_tokens, 1)), axis=1)
    chosen = np.stack([random.permutation(num_experts)[:top_k] for _ in range(num_tokens)])
    num_named = min(top_k + extra, num_experts)
    ranks = rank_on_device(torch.from_numpy(logits), torch.from_numpy(chosen), num_named)
    assert ranks.dtype == torch.int64
    assert ranks.tolist() == rank(logits, chosen, num_named).tolist()


def test_among_equal_logits_of_the_chosen_the_lower_number_comes_first() -> None:
    logits, chosen = np.zeros((1, 8), np.float32), np.array([[6, 2, 4]])
    ranks = rank_on_device(torch.from_numpy(logits), torch.from_numpy(chosen), 3)
    assert ranks.tolist() == rank(logits, chosen, 3).tolist() == [[2, 4, 6]]
