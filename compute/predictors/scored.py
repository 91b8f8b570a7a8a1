"""Scored: a predictor whose word is compared with what came. Changes nothing of what it says.

Counts per (prediction, expert): a layer predicted from two distances counts twice. Steps for
which nothing was predicted do not count; in a live run these are the ones without room for guesses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compute.predictors.base import Prediction, Predictor

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class Score:
    """`wanted` by layers that had been predicted, `predicted` for them, and `right`: both."""

    wanted: int = 0
    predicted: int = 0
    right: int = 0

    @property
    def recall(self) -> float | None:
        """right / wanted; None where nothing was predicted."""
        return self.right / self.wanted if self.wanted else None

    @property
    def precision(self) -> float | None:
        """right / predicted; None where nothing was predicted."""
        return self.right / self.predicted if self.predicted else None


class Scored:
    """Passes everything on to `predictor`. `by_distance[d - 1]` scores what was said d layers before."""

    def __init__(self, predictor: Predictor) -> None:
        self.name = predictor.name
        self.lookahead = predictor.lookahead
        self.by_distance = [Score() for _ in range(predictor.lookahead)]
        self._predictor = predictor
        #: layer -> (distance, experts) of the running pass
        self._said: dict[int, list[tuple[int, list[int]]]] = {}

    @property
    def notices(self) -> list[str]:
        return self._predictor.notices

    @property
    def score(self) -> Score:
        """Over all distances."""
        scores = self.by_distance
        return Score(
            sum(score.wanted for score in scores),
            sum(score.predicted for score in scores),
            sum(score.right for score in scores),
        )

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        self._said.clear()
        self._predictor.begin_pass(num_tokens, is_new_sequence)

    def observe(self, layer: int, chosen: Sequence[int]) -> None:
        for distance, experts in self._said.pop(layer, ()):
            score = self.by_distance[distance - 1]
            score.wanted += len(chosen)
            score.predicted += len(experts)
            score.right += len(set(chosen).intersection(experts))
        self._predictor.observe(layer, chosen)

    def predict(self, layer: int, residual: Tensor | None, chosen: Sequence[int]) -> list[Prediction]:
        predictions = self._predictor.predict(layer, residual, chosen)
        for prediction in predictions:
            said = self._said.setdefault(prediction.layer, [])
            said.append((prediction.layer - layer, prediction.experts))
        return predictions

    def close(self) -> None:
        self._predictor.close()
