"""Combined: several predictors asked together, their answers made one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compute.predictors.base import Prediction, Predictor

if TYPE_CHECKING:
    from torch import Tensor

RULES = ("union", "ranks")


class Combined:
    """`rule` "union": what the first one names, then what the next ones add. "ranks": by mean place, no wider
    than the widest answer; who is not named by one stands behind its last.
    """

    def __init__(self, predictors: Sequence[Predictor], rule: str = "union") -> None:
        if rule not in RULES:
            raise ValueError(f"combine is {rule!r}; allowed: {', '.join(RULES)}")
        self.name = "+".join(predictor.name for predictor in predictors)
        self.lookahead = max(predictor.lookahead for predictor in predictors)
        self.notices = [notice for predictor in predictors for notice in predictor.notices]
        self.predictors = predictors
        self._join = join_union if rule == "union" else join_ranks

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        for predictor in self.predictors:
            predictor.begin_pass(num_tokens, is_new_sequence)

    def observe(self, layer: int, chosen: Sequence[int]) -> None:
        for predictor in self.predictors:
            predictor.observe(layer, chosen)

    def predict(self, layer: int, residual: Tensor | None, chosen: Sequence[int]) -> list[Prediction]:
        answers: dict[int, list[list[int]]] = {}
        for predictor in self.predictors:
            for prediction in predictor.predict(layer, residual, chosen):
                answers.setdefault(prediction.layer, []).append(prediction.experts)
        return [Prediction(target, self._join(answers[target])) for target in sorted(answers)]

    def close(self) -> None:
        for predictor in self.predictors:
            predictor.close()


def join_union(answers: Sequence[Sequence[int]]) -> list[int]:
    """Everybody named, the first answer first."""
    return list(dict.fromkeys(expert for answer in answers for expert in answer))


def join_ranks(answers: Sequence[Sequence[int]]) -> list[int]:
    """The best by mean place, as many as the longest answer; among equals the first answer's come first."""
    most = max(map(len, answers))
    places: dict[int, int] = dict.fromkeys(join_union(answers), 0)
    for answer in answers:
        place_of = {expert: place for place, expert in enumerate(answer)}
        for expert in places:
            places[expert] += place_of.get(expert, most)
    return sorted(places, key=places.__getitem__)[:most]
