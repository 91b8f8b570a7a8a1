"""Rows: the (token, choice) pairs of one layer-step, grouped by expert and put together again.

A row is one token on its way through one of its experts. Outputs may be put in any order: the
result is bit for bit what transformers' grouped_mm makes of the same outputs. Knows no slots.
"""

from itertools import accumulate
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from protocol.errors import ModelError


class Rows(Protocol):
    """The rows of one layer-step; experts go by key."""

    #: the step's experts, distinct and ascending
    keys: list[int]

    def of(self, key: int) -> Tensor:
        """[n, H]: the input rows of one expert, in token order."""

    def largest_first(self, keys: list[int]) -> list[int]:
        """Some of `keys`, the expert with the most rows first."""

    def put(self, key: int, output: Tensor) -> None:
        """[n, H]: what one expert made of its rows."""

    def places(self, keys: list[int]) -> tuple[list[int], Tensor]:
        """(first, places) of some experts at once: expert i's rows have places[first[i] : first[i + 1]].

        A place is token * K + choice, an index into `weighted`.
        """

    def weighted(self) -> Tensor:
        """[T * K, H]: where weighted outputs may be written to their places, instead of being put."""

    def combine(self) -> Tensor:
        """[T, H]: each token's outputs, weighted and summed in the order of its choices."""


def group(hidden: Tensor, index: Tensor, weights: Tensor, first_key: int, num_experts: int) -> Rows:
    """The rows of hidden [T, H] by index int64 [T, K] and weights [T, K]; T at least 1.

    `first_key` is the key of the layer's expert 0. Raises ModelError for an index that is no
    expert of the layer.
    """
    if len(index) == 1:
        chosen = index.tolist()[0]
        if len(set(chosen)) == len(chosen):
            _check(min(chosen), max(chosen), num_experts)
            return OneToken(hidden, [first_key + expert for expert in chosen], weights)
    return ManyTokens(hidden, index, weights, first_key, num_experts)


class Weighted:
    """Weighted outputs [T * K, H] on the way to their sums; memory is taken at first use."""

    __slots__ = ("_hidden", "_outputs", "_weights")

    def __init__(self, hidden: Tensor, weights: Tensor) -> None:
        self._hidden = hidden
        self._weights = weights
        self._outputs: Tensor | None = None

    def outputs(self) -> Tensor:
        """[T * K, H] in the dtype of grouped_mm's products; every place must be written."""
        if self._outputs is None:
            dtype = torch.promote_types(self._hidden.dtype, self._weights.dtype)
            self._outputs = self._hidden.new_empty(self._weights.numel(), self._hidden.shape[1], dtype=dtype)
        return self._outputs

    def sums(self) -> Tensor | None:
        """[T, H] in hidden's dtype; None when nobody asked for the outputs."""
        if self._outputs is None:
            return None
        return _sum(self._outputs, self._hidden)


class OneToken:
    """Decode: every expert gets the same single row."""

    __slots__ = ("_chosen", "_hidden", "_outputs", "_weighted", "_weights", "keys")

    def __init__(self, hidden: Tensor, chosen: list[int], weights: Tensor) -> None:
        self.keys = sorted(chosen)
        self._chosen = chosen
        self._hidden = hidden
        self._weights = weights
        self._outputs: dict[int, Tensor] = {}
        self._weighted = Weighted(hidden, weights)

    def of(self, key: int) -> Tensor:
        return self._hidden

    def largest_first(self, keys: list[int]) -> list[int]:
        return keys

    def put(self, key: int, output: Tensor) -> None:
        self._outputs[key] = output

    def places(self, keys: list[int]) -> tuple[list[int], Tensor]:
        choices = np.array([self._chosen.index(key) for key in keys], np.int64)
        return list(range(len(keys) + 1)), torch.from_numpy(choices)

    def weighted(self) -> Tensor:
        return self._weighted.outputs()

    def combine(self) -> Tensor:
        if (sums := self._weighted.sums()) is not None:
            return sums
        outputs = self._outputs
        return _weigh_and_sum(torch.cat([outputs[key] for key in self._chosen]), self._weights, self._hidden)


class ManyTokens:
    """Prefill and batches: rows are sorted by expert once, and every output goes to its rows' places."""

    __slots__ = ("_hidden", "_places", "_put", "_top_k", "_weighted", "_weights", "keys")

    def __init__(
        self, hidden: Tensor, index: Tensor, weights: Tensor, first_key: int, num_experts: int
    ) -> None:
        sorted_experts, order = torch.sort(index.reshape(-1), stable=True)
        distinct, counts = torch.unique_consecutive(sorted_experts, return_counts=True)
        experts, sizes = distinct.tolist(), counts.tolist()
        _check(experts[0], experts[-1], num_experts)
        self.keys = [first_key + expert for expert in experts]
        self._places: dict[int, Tensor] = dict(zip(self.keys, torch.split(order, sizes)))
        self._top_k = index.shape[1]
        self._hidden = hidden
        self._weights = weights
        self._put: Tensor | None = None
        self._weighted = Weighted(hidden, weights)

    def of(self, key: int) -> Tensor:
        return self._hidden.index_select(0, self._places[key] // self._top_k)

    def largest_first(self, keys: list[int]) -> list[int]:
        return sorted(keys, key=lambda key: -len(self._places[key]))

    def put(self, key: int, output: Tensor) -> None:
        if self._put is None:
            self._put = output.new_empty(self._weights.numel(), output.shape[1])
        self._put.index_copy_(0, self._places[key], output)

    def places(self, keys: list[int]) -> tuple[list[int], Tensor]:
        places = [self._places[key] for key in keys]
        return [0, *accumulate(map(len, places))], torch.cat(places)

    def weighted(self) -> Tensor:
        return self._weighted.outputs()

    def combine(self) -> Tensor:
        if (sums := self._weighted.sums()) is not None:
            return sums
        assert self._put is not None, "no expert was put"
        return _weigh_and_sum(self._put, self._weights, self._hidden)


def _weigh_and_sum(outputs: Tensor, weights: Tensor, hidden: Tensor) -> Tensor:
    """outputs [T*K, H] -> [T, H] in hidden's dtype, by the operations of grouped_mm."""
    return _sum(outputs * weights.reshape(-1, 1), hidden)


def _sum(weighted: Tensor, hidden: Tensor) -> Tensor:
    """weighted [T*K, H] -> [T, H] in hidden's dtype."""
    return weighted.view(len(hidden), -1, weighted.shape[1]).sum(1).to(hidden.dtype)


def no_such_expert(expert: int, num_experts: int) -> ModelError:
    """What to raise for a router's choice that is no expert of its layer."""
    return ModelError(
        f"the router chose expert {expert} of a layer with {num_experts}: "
        "expert parallelism and other index tricks are not supported, run the model on one device"
    )


def _check(lowest: int, highest: int, num_experts: int) -> None:
    if lowest < 0 or highest >= num_experts:
        raise no_such_expert(lowest if lowest < 0 else highest, num_experts)
