"""Synthetic routing: which experts each layer-step uses, and what a predictor would have said.

Blocks of tokens take turns: uniformly random ones, and ones as traces show them, with a few popular
experts (Zipf) and a token that repeats much of the one before. Pure: everything follows from the seed.
"""

from collections import deque
from dataclasses import dataclass, field

import numpy as np

_BLOCK_TOKENS = 32
_ZIPF = 1.1
_LOCALITY = 0.4


@dataclass(slots=True)
class Routing:
    """`accuracy`: the share of the coming experts that `guess` names rightly."""

    num_layers: int
    num_experts: int
    top_k: int
    seed: int
    lookahead: int
    accuracy: float = 0.8
    _rng: np.random.Generator = field(init=False)
    _popularity: list[list[float]] = field(init=False)
    _before: dict[int, list[int]] = field(init=False, default_factory=dict)
    _ahead: deque[list[int]] = field(init=False, default_factory=deque)
    _num_drawn: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        weights = 1.0 / np.arange(1, self.num_experts + 1) ** _ZIPF
        shares = weights / weights.sum()
        self._popularity = [self._rng.permutation(shares).tolist() for _ in range(self.num_layers)]

    def next_step(self) -> list[int]:
        """The keys of the next layer-step, distinct and ascending."""
        while len(self._ahead) <= self.lookahead:
            self._ahead.append(self._draw())
        return self._ahead.popleft()

    def guess(self, ahead: int) -> list[int]:
        """What a predictor says of the layer-step that comes `ahead` steps after the last one (from 1)."""
        layer_keys = self._ahead[ahead - 1]
        first = layer_keys[0] // self.num_experts * self.num_experts
        wrong = self._rng.integers(0, self.num_experts, len(layer_keys))
        is_right = self._rng.random(len(layer_keys)) < self.accuracy
        guesses = [k if r else first + int(w) for k, r, w in zip(layer_keys, is_right, wrong, strict=True)]
        return list(dict.fromkeys(guesses))

    def _draw(self) -> list[int]:
        token, layer = divmod(self._num_drawn, self.num_layers)
        self._num_drawn += 1
        is_uniform = token // _BLOCK_TOKENS % 2 == 1
        shares = None if is_uniform else self._popularity[layer]
        chosen = self._rng.choice(self.num_experts, self.top_k, replace=False, p=shares).tolist()
        if not is_uniform:
            kept = [e for e in self._before.get(layer, []) if self._rng.random() < _LOCALITY]
            chosen = list(dict.fromkeys([*kept, *chosen]))[: self.top_k]
        self._before[layer] = chosen
        return sorted(layer * self.num_experts + expert for expert in chosen)
