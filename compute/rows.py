"""Rows: the (token, choice) pairs of one layer-step, grouped by expert and put together again.

A row is one token on its way through one of its experts. Outputs may be put in any order: the
result is bit for bit what transformers' grouped_mm makes of the same outputs. Knows no slots.
"""

from typing import Protocol

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


class OneToken:
    """Decode: every expert gets the same single row."""

    __slots__ = ("_chosen", "_hidden", "_outputs", "_weights", "keys")

    def __init__(self, hidden: Tensor, chosen: list[int], weights: Tensor) -> None:
        self.keys = sorted(chosen)
        self._chosen = chosen
        self._hidden = hidden
        self._weights = weights
        self._outputs: dict[int, Tensor] = {}

    def of(self, key: int) -> Tensor:
        return self._hidden

    def largest_first(self, keys: list[int]) -> list[int]:
        return keys

    def put(self, key: int, output: Tensor) -> None:
        self._outputs[key] = output

    def combine(self) -> Tensor:
        outputs = self._outputs
        return _weigh_and_sum(torch.cat([outputs[key] for key in self._chosen]), self._weights, self._hidden)


class ManyTokens:
    """Prefill and batches: rows are sorted by expert once, and every output goes to its rows' places."""

    __slots__ = ("_hidden", "_placed", "_places", "_rows", "_weights", "keys")

    def __init__(
        self, hidden: Tensor, index: Tensor, weights: Tensor, first_key: int, num_experts: int
    ) -> None:
        sorted_experts, order = torch.sort(index.reshape(-1), stable=True)
        distinct, counts = torch.unique_consecutive(sorted_experts, return_counts=True)
        experts, sizes = distinct.tolist(), counts.tolist()
        _check(experts[0], experts[-1], num_experts)
        self.keys = [first_key + expert for expert in experts]
        rows = hidden.index_select(0, order // index.shape[1])
        self._places: dict[int, Tensor] = dict(zip(self.keys, torch.split(order, sizes)))
        self._rows: dict[int, Tensor] = dict(zip(self.keys, torch.split(rows, sizes)))
        self._hidden = hidden
        self._weights = weights
        self._placed: Tensor | None = None

    def of(self, key: int) -> Tensor:
        return self._rows[key]

    def largest_first(self, keys: list[int]) -> list[int]:
        return sorted(keys, key=lambda key: -len(self._rows[key]))

    def put(self, key: int, output: Tensor) -> None:
        if self._placed is None:
            self._placed = output.new_empty(self._weights.numel(), output.shape[1])
        self._placed.index_copy_(0, self._places[key], output)

    def combine(self) -> Tensor:
        assert self._placed is not None, "no expert was put"
        return _weigh_and_sum(self._placed, self._weights, self._hidden)


def _weigh_and_sum(outputs: Tensor, weights: Tensor, hidden: Tensor) -> Tensor:
    """outputs [T*K, H] -> [T, H] in hidden's dtype, by the operations of grouped_mm."""
    weighted = outputs * weights.reshape(-1, 1)
    return weighted.view(len(hidden), -1, outputs.shape[1]).sum(1).to(hidden.dtype)


def _check(lowest: int, highest: int, num_experts: int) -> None:
    if lowest < 0 or highest >= num_experts:
        raise ModelError(
            f"the router chose expert {lowest if lowest < 0 else highest} of a layer with {num_experts}: "
            "expert parallelism and other index tricks are not supported, run the model on one device"
        )
