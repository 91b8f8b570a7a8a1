"""Chances that an expert is used at its layer's next visit, and at the visits after it; learnt online.

Two logistic regressions, each shared by all layers, one AdaGrad step a layer-step. Features of an
expert: logs of its moving averages of use and of its share in the layer's history (both relative
to k / E), its age in visits (one-hot), and, for the next visit only, how often it follows those
just used. The second model learns from the features as they stood one visit earlier.
"""

from collections.abc import Sequence
from math import log
from typing import NamedTuple

import numpy as np

from compute.arrays import IntArray
from compute.policies.base import CacheShape, FloatArray

#: What remains of a moving average after a visit.
KEPT = (0.5, 0.8, 0.9, 0.97, 0.995)
NUM_AGES = 32
#: Dense features: the averages, then the share, then what follows whom.
SHARE = len(KEPT)
FOLLOWS = SHARE + 1
NUM_DENSE = FOLLOWS + 1
NUM_WEIGHTS = NUM_DENSE + NUM_AGES
#: Where an age's weight lies among the two models' weights.
OFFSETS = np.array([[NUM_DENSE], [NUM_WEIGHTS + NUM_DENSE]])
#: What remains of a transition's average after a use of its origin.
TRANSITION_KEPT = 0.98
#: Visits that a layer's history starts with, all experts alike.
PRIOR_VISITS = 4.0

# Operands of vector work: arrays, as a Python number costs a conversion each time.
ONE = np.array(1.0, dtype=np.float32)
#: Keeps logs finite, relative to k / E.
FLOOR = np.array(1e-3, dtype=np.float32)
LEAST_CHANCE = np.array(1e-4, dtype=np.float32)
OLDEST = np.array(NUM_AGES - 1)
YOUNGER = np.array(1)


class Belief(NamedTuple):
    """What was believed of an expert's coming visits, and why."""

    dense: FloatArray  #: [7, E]
    ages: IntArray  #: [2, E], as places in both models' weights
    chances: FloatArray  #: [2, E], next visit and later ones


class HabitModel:
    """`observe` a layer-step, and hear the chances of the layer's experts."""

    def __init__(self, shape: CacheShape, rate: float) -> None:
        num_layers, num_experts = shape.num_layers, shape.num_experts
        self._num_experts = num_experts
        self._rate = np.array(rate, dtype=np.float32)
        chance = min(shape.top_k / num_experts, 0.999)
        #: Per layer: use relative to k / E [6, E], its transitions [E, E], a row for each origin.
        self._usage = [np.ones((FOLLOWS, num_experts), dtype=np.float32) for _ in range(num_layers)]
        self._follows = [np.ones((num_experts, num_experts), dtype=np.float32) for _ in range(num_layers)]
        self._ages = [np.full(num_experts, NUM_AGES - 1) for _ in range(num_layers)]
        self._used: list[IntArray | None] = [None] * num_layers
        self._past: list[list[Belief]] = [[] for _ in range(num_layers)]
        self._num_visits = [PRIOR_VISITS] * num_layers
        for usage in self._usage:
            usage[SHARE] = PRIOR_VISITS
        kept = np.array([*KEPT, 1.0])[:, None]
        gained = np.array([*(1.0 - np.array(KEPT)), 1.0])[:, None] / chance
        self._kept, self._gained = kept.astype(np.float32), gained.astype(np.float32)
        self._transition_kept = np.array(TRANSITION_KEPT, dtype=np.float32)
        self._transition_gained = np.array((1.0 - TRANSITION_KEPT) / chance, dtype=np.float32)
        #: Both models' weights, negative, [2, dense + ages], and AdaGrad's sums of squares.
        self._weights = np.zeros((2, NUM_WEIGHTS), dtype=np.float32)
        self._weights[:, 1] = -1.0
        self._weights[:, NUM_DENSE:] = -np.log(chance / (1.0 - chance))
        self._squares = np.full_like(self._weights, 1e-4)
        self._gradient = np.zeros_like(self._weights)
        self._scratch = np.empty_like(self._weights)
        self._is_used = np.zeros(num_experts, dtype=np.float32)
        self._shift = np.zeros((2, 1), dtype=np.float32)

    def observe(self, layer: int, keys: Sequence[int]) -> FloatArray:
        """Learn from the use of `keys`; the chances [2, E] of use at the next visit and at later ones."""
        used = np.array(keys)
        used -= layer * self._num_experts
        self._is_used.fill(0.0)
        self._is_used[used] = 1.0
        past = self._past[layer]
        if len(past) == 2:
            self._learn(*past)
            del past[0]
        self._note(layer, used)
        belief = self._believe(layer, used)
        past.append(belief)
        return belief.chances

    def _learn(self, older: Belief, newer: Belief) -> None:
        """One AdaGrad step: the first model by the newer belief, the second by the older one."""
        gradient, scratch, squares = self._gradient, self._scratch, self._squares
        for row, belief, chances in (
            (gradient[0], newer, newer.chances[0]),
            (gradient[1], older, older.chances[1]),
        ):
            error = chances - self._is_used
            row[:] = np.bincount(belief.ages[0], error, NUM_WEIGHTS)
            np.dot(belief.dense, error, out=row[:NUM_DENSE])
        gradient[1, FOLLOWS] = 0.0
        np.multiply(gradient, gradient, out=scratch)
        squares += scratch
        np.sqrt(squares, out=scratch)
        np.divide(gradient, scratch, out=scratch)
        scratch *= self._rate
        self._weights += scratch

    def _note(self, layer: int, used: IntArray) -> None:
        """Let averages, ages and transitions know what was used."""
        usage = self._usage[layer]
        usage *= self._kept
        usage += self._gained * self._is_used
        np.maximum(usage, FLOOR, out=usage)
        self._num_visits[layer] += 1.0
        ages = self._ages[layer]
        ages += YOUNGER
        np.minimum(ages, OLDEST, out=ages)
        ages[used] = 0
        origins, self._used[layer] = self._used[layer], used
        if origins is not None:
            follows = self._follows[layer]
            rows = follows.take(origins, axis=0)
            rows *= self._transition_kept
            rows += self._is_used * self._transition_gained
            np.maximum(rows, FLOOR, out=rows)
            follows[origins] = rows

    def _believe(self, layer: int, used: IntArray) -> Belief:
        dense = np.empty((NUM_DENSE, self._num_experts), dtype=np.float32)
        dense[:FOLLOWS] = self._usage[layer]
        np.add.reduce(self._follows[layer].take(used, axis=0), axis=0, out=dense[FOLLOWS])
        np.log(dense, out=dense)
        shift = self._shift
        shift[0, 0], shift[1, 0] = log(self._num_visits[layer]), log(len(used))
        dense[SHARE:] -= shift
        ages = self._ages[layer] + OFFSETS
        chances = self._weights[:, :NUM_DENSE] @ dense
        chances += self._weights.take(ages)
        np.exp(chances, out=chances)
        chances += ONE
        np.reciprocal(chances, out=chances)
        np.maximum(chances, LEAST_CHANCE, out=chances)
        return Belief(dense, ages, chances)
