"""Routing told instead of computed: every layer's experts get the choices that a trace recorded.

Sits on the input of each experts module, so stock models and ours are treated alike; the routers
still run, and keep their weights. A speculative gate that asks a router hears the recorded choice
of that layer, each expert of it replaced by a wrong one with probability 1 - recall.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compute.arrays import IntArray
from compute.trace_file import read

_CPU = torch.device("cpu")


class Routing:
    """What the next forward pass will choose; nothing is imposed before `show`.

    `chosen` and `guessed` [tokens, layers, k] are the trace's choices and the gate's answers. They are
    kept on the model's `device`; those of a single token always in one place, where a graph finds them.
    """

    def __init__(self, chosen: IntArray, guessed: IntArray, device: torch.device = _CPU) -> None:
        self._told = torch.stack([torch.from_numpy(chosen), torch.from_numpy(guessed)]).to(device)
        self._one_token = self._told[:, :1].clone()
        self._now: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return self._told.shape[1]

    def show(self, first: int, num_tokens: int) -> None:
        """The next pass is over the trace's tokens from `first` on."""
        self._now = self._told[:, first : first + num_tokens]
        if num_tokens == 1:
            self._now = self._one_token.copy_(self._now)

    def impose_on(self, experts: Sequence[nn.Module], routers: Sequence[nn.Module | None]) -> None:
        """Speak for every layer of a model; `routers` are those that a gate may ask."""
        for layer, (module, router) in enumerate(zip(experts, routers, strict=True)):
            impose(module, partial(self._choice, layer))
            if router is not None:
                self._answer_for(router, layer)

    def _choice(self, layer: int, num_rows: int) -> Tensor | None:
        return None if self._now is None else _rows_of(self._now[0], layer, num_rows)

    def _answer_for(self, router: nn.Module, layer: int) -> None:
        ask = router.forward

        def answer(hidden: Tensor) -> tuple[Tensor, ...]:
            logits, weights, index, *more = ask(hidden)
            if self._now is not None:
                index = _rows_of(self._now[1], layer, len(index)).to(index.device)
            return logits, weights, index, *more

        router.forward = answer


def _rows_of(told: Tensor, layer: int, num_rows: int) -> Tensor:
    """[num_rows, k] of told [tokens, layers, k]; a trace of fewer layers begins again."""
    rows = told[:, layer % told.shape[1]]
    assert len(rows) == num_rows, f"{num_rows} rows in a pass that was said to have {len(rows)}"
    return rows


def impose(module: nn.Module, choose: Callable[[int], Tensor | None]) -> RemovableHandle:
    """From now on `module`'s experts are `choose(num_rows)` [num_rows, k], unless that is None.

    Hooks that were there before see them too.
    """

    def replace_index(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        hidden, index, weights = args
        told = choose(len(index))
        return None if told is None else (hidden, told.to(index.device), weights[:, : told.shape[1]])

    return module.register_forward_pre_hook(replace_index, prepend=True)


def recorded(
    path: Path,
    num_experts: int,
    top_k: int,
    num_layers: int,
    *,
    most_tokens: int,
    recall: float = 1.0,
    seed: int = 0,
    device: torch.device = _CPU,
) -> Routing:
    """The routing of a trace file, cut to the layers of a model; tokens with a gap are left out.

    Raises ValueError when it is no trace of so many experts.
    """
    trace = read(path)
    if trace.num_experts != num_experts or trace.top_k > top_k:
        raise ValueError(
            f"--routing {path} chooses {trace.top_k} of {trace.num_experts} experts, the model {top_k} of "
            f"{num_experts}: pass a trace of this model's family"
        )
    chosen = trace.experts[:, :num_layers].astype(np.int64)
    chosen = chosen[(chosen >= 0).all(axis=(1, 2))][:most_tokens]
    return Routing(chosen, guess(chosen, num_experts, recall, seed), device)


def guess(chosen: IntArray, num_experts: int, recall: float, seed: int) -> IntArray:
    """`chosen` [tokens, layers, k], each expert with probability 1 - recall a wrong one instead.

    The wrong ones are not among the token's own and differ from each other, as far as there are any.
    """
    random = np.random.default_rng(seed)
    guessed = np.empty_like(chosen)
    top_k = chosen.shape[2]
    num_wrong = min(top_k, num_experts - top_k)
    for layer in range(chosen.shape[1]):
        own = chosen[:, layer]
        draws = random.random((len(own), num_experts), dtype=np.float32)
        np.put_along_axis(draws, own, np.inf, axis=1)
        wrong = np.argsort(draws, axis=1)[:, :num_wrong]
        keeps = random.random(own.shape) < recall
        keeps[:, num_wrong:] = True
        guessed[:, layer] = np.where(keeps, own, np.pad(wrong, ((0, 0), (0, top_k - num_wrong))))
    return guessed


def sweep(num_experts: int, top_k: int) -> Tensor:
    """int64 [n, top_k]: the fewest tokens that use every expert of a layer."""
    num_tokens = -(-num_experts // top_k)
    return (torch.arange(num_tokens * top_k) % num_experts).view(num_tokens, top_k)
