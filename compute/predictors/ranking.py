"""Ranking: which experts a gate's logits put first, for one token and for many together.

Pure arithmetic on arrays, shared by the live gate and by the one that a trace has recorded, so
that both name the same experts in the same order, equal logits included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest
from math import ceil

import numpy as np
import numpy.typing as npt

Ranks = npt.NDArray[np.int16]
Index = npt.NDArray[np.signedinteger]


@dataclass(frozen=True, slots=True)
class Width:
    """How many experts a gate names beyond the k that it would choose: `extra`, or all above a percentile.

    The widened gate of FATE, arXiv 2502.12224; its percentile is read here as one of a token's own
    logits over all experts (reconstructed), which names the same number for every token.
    """

    extra: int = 0
    percentile: float | None = None

    def __post_init__(self) -> None:
        if self.extra < 0:
            raise ValueError(f"extra is {self.extra}; it is a number of experts, 0 or more")
        if self.percentile is None:
            return
        if self.extra:
            raise ValueError("extra and percentile both say how many experts are named: pass one of them")
        if not 0 <= self.percentile < 100:
            raise ValueError(f"percentile is {self.percentile:g}; it must be at least 0 and below 100")

    def of(self, top_k: int, num_experts: int) -> int:
        """Experts named for a token, at least `top_k`."""
        if self.percentile is None:
            return min(top_k + self.extra, num_experts)
        return max(top_k, ceil(num_experts * (1 - self.percentile / 100)))


def rank(logits: npt.NDArray[np.float32], chosen: Index, num_named: int) -> Ranks:
    """[T, num_named] of logits [T, num_experts] and chosen [T, k]: the chosen first, then others, by logit.

    Among equal logits the lower number comes first.
    """
    chosen = np.sort(chosen, axis=1)
    order = np.argsort(-np.take_along_axis(logits, chosen, 1), axis=1, kind="stable")
    first = np.take_along_axis(chosen, order, 1).astype(np.int16)
    num_more = num_named - first.shape[1]
    if num_more <= 0:
        return first[:, :num_named]
    others = logits.copy()
    np.put_along_axis(others, chosen, -np.inf, 1)
    more = np.argsort(-others, axis=1, kind="stable")[:, :num_more]
    return np.concatenate([first, more.astype(np.int16)], axis=1)


def rank_one(logits: Sequence[float], chosen: Sequence[int], num_named: int) -> list[int]:
    """`rank` of one token, in a fraction of its time."""
    ranked = sorted(chosen, key=lambda expert: (-logits[expert], expert))
    if num_named > len(ranked):
        others = set(range(len(logits))).difference(chosen)
        ranked += nsmallest(num_named - len(ranked), others, key=lambda expert: (-logits[expert], expert))
    return ranked[:num_named]


def most_wanted(ranks: Ranks) -> list[int]:
    """The experts of ranks [T, n] (-1 = none): by how many tokens name them, then by their places."""
    if len(ranks) == 1:
        return [expert for expert in ranks[0].tolist() if expert >= 0]
    is_named = ranks >= 0
    experts = ranks[is_named].astype(np.int64)
    places = np.broadcast_to(np.arange(ranks.shape[1]), ranks.shape)[is_named]
    votes = np.bincount(experts)
    lost = np.bincount(experts, weights=places)
    wanted = np.flatnonzero(votes)
    order: list[int] = wanted[np.lexsort((wanted, lost[wanted] / votes[wanted], -votes[wanted]))].tolist()
    return order
