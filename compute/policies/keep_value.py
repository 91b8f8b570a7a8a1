"""What keeping an expert is worth: E[gamma ** (visits of its layer until its next use - 1)], learnt online.

One logistic model for all layers and experts, on a few features, plus for each layer a matrix of
pulls: how much the use of an expert (of the layer itself or of one before it) says of each expert's
next use. Both learn by temporal differences (TD(0), Sutton 1988), one step a layer-step, from zero.
Logs and powers are the rough ones of a float's own bits: that costs no accuracy worth measuring, and
makes `keep_value.c`, the compiled form of `observe`, agree to the last bit.
"""

from collections.abc import Sequence
from math import log

import numpy as np

from compute.arrays import IntArray
from compute.policies.base import CacheShape, FloatArray

#: Layers whose last choice pulls: the layer itself and those before it.
MOST_SOURCES = 6
#: Rows of `usage`: two moving averages relative to k / E, uses ever, uses in this sequence.
NUM_USAGES = 4
#: Rows of the features: a constant, the two averages, the share of all uses and of the sequence's,
#: how often it followed the experts used now, the router's probability now and its moving average.
NUM_FEATURES = 8

_KEPT = np.array([[0.9], [0.97]], dtype=np.float32)
_ROUTED_KEPT, _ROUTED_GAINED = np.float32(0.8), np.float32(0.2)
#: Keeps logs finite, relative to k / E.
_FLOOR = np.float32(0.02)
#: Visits that a sequence starts with, as the layer's whole history has it; uses that followers start with.
_PRIOR_VISITS, _PRIOR_USES = np.float32(10.0), np.float32(5.0)
#: Of AdaGrad for the features' weights, and plain for the pulls.
_RATE, _PULL_RATE = np.float32(0.1), np.float32(0.01)
_LOG_STEP, _LOG_ORIGIN = np.float32(log(2.0) / 2**23), np.float32(127.0 * log(2.0))
_EXP_STEP, _EXP_ORIGIN = np.float32(2**23 / log(2.0)), np.float32(127.0 * 2**23)
_EXP_BOUND = np.float32(40.0 * 2**23)
_ONE = np.float32(1.0)


class KeepValue:
    """`observe` a layer-step, and hear what keeping each of the layer's experts is worth."""

    def __init__(self, shape: CacheShape, gamma: float) -> None:
        num_layers, num_experts = shape.num_layers, shape.num_experts
        self._shape = shape
        self._num_sources = min(num_layers, MOST_SOURCES)
        self._gamma = np.float32(gamma)
        self._per_chance = np.float32(num_experts) / np.float32(shape.top_k)
        self._usage = np.ones((num_layers, NUM_USAGES, num_experts), dtype=np.float32)
        self._visits = np.zeros((num_layers, 2), dtype=np.float32)
        self._visits[:, 0] = self._per_chance
        #: how often an expert followed another one of its layer; in the last column, the uses of that one
        self._follows = np.zeros((num_layers, num_experts, num_experts + 1), dtype=np.float32)
        self._pulls = np.zeros((num_layers, self._num_sources * num_experts, num_experts), dtype=np.float32)
        self._routed = np.ones((num_layers, num_experts), dtype=np.float32)
        self._weights = np.zeros(NUM_FEATURES, dtype=np.float32)
        self._squares = np.full(NUM_FEATURES, 1e-3, dtype=np.float32)
        #: each layer's last visit: its features, the sum of its origins' pulls, and those origins
        self._features = np.zeros((num_layers, NUM_FEATURES, num_experts), dtype=np.float32)
        self._pulled = np.zeros((num_layers, num_experts), dtype=np.float32)
        self._origins = [(np.empty(0, np.int64), np.empty((0, 1), np.float32))] * num_layers
        self._chosen = [np.empty(0, np.int64)] * num_layers
        self.begin_sequence()

    def begin_sequence(self) -> None:
        """Nothing was used in this sequence yet."""
        self._usage[:, -1] = 0.0
        self._visits[:, 1] = 0.0

    def observe(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> FloatArray:
        """Learn from the use of `keys` at `layer`; the values [E], each in (0, 1), until the next call.

        `probs`: [E], what the router said of each expert, where it is known.
        """
        used, before = np.array(keys), self._chosen[layer]
        used -= layer * self._shape.num_experts
        is_used = np.zeros(self._shape.num_experts + 1, dtype=np.float32)
        is_used[used] = 1.0
        is_used[-1] = 1.0
        self._note_use(layer, is_used[:-1])
        self._follows[layer, before] += is_used
        self._chosen[layer] = used
        features = self._describe(layer, used, probs)
        origins, trust = self._gather(layer)
        pulled = _sum_of_rows(self._pulls[layer, origins] * trust)
        now = self._judge(features, pulled)
        if before.size:
            self._learn(layer, used, now)
        self._features[layer], self._pulled[layer] = features, pulled
        self._origins[layer] = origins, trust
        return now

    def _note_use(self, layer: int, is_used: FloatArray) -> None:
        averages = self._usage[layer, :2]
        averages *= _KEPT
        averages += is_used * ((_ONE - _KEPT) * self._per_chance)
        self._usage[layer, 2:] += is_used
        self._visits[layer] += _ONE

    def _describe(self, layer: int, used: IntArray, probs: FloatArray | None) -> FloatArray:
        """[8, E] after a visit that is noted; the router's rows are 0 where it is not known what it said."""
        usage, (visits, in_sequence) = self._usage[layer], self._visits[layer]
        share = usage[2] / visits
        features = np.empty((NUM_FEATURES, len(share)), dtype=np.float32)
        features[1:3] = usage[:2]
        features[3] = share * self._per_chance
        features[4] = (usage[3] + share * _PRIOR_VISITS) / (in_sequence + _PRIOR_VISITS) * self._per_chance
        features[5] = self._followed(layer, used, share)
        if probs is not None:
            features[6] = probs * np.float32(len(share))
            routed = self._routed[layer]
            routed *= _ROUTED_KEPT
            routed += features[6] * _ROUTED_GAINED
            features[7] = routed
        num_known = NUM_FEATURES if probs is not None else NUM_FEATURES - 2
        features[num_known:] = 0.0
        features[1:num_known] = _rough_log(features[1:num_known] + _FLOOR)
        features[0] = 1.0
        return features

    def _followed(self, layer: int, used: IntArray, share: FloatArray) -> FloatArray:
        """[E]: how much more than its share an expert follows those just used, in the mean over them.

        An expert of few uses is trusted little: its followers start with the share.
        """
        rows = self._follows[layer, used]
        trust = _ONE / (rows[:, -1:] + _PRIOR_USES)
        followed = _sum_of_rows(rows[:, :-1] * trust) / share
        followed += _sum_of_rows(trust) * _PRIOR_USES
        followed /= np.float32(len(used))
        return followed

    def _gather(self, layer: int) -> tuple[IntArray, FloatArray]:
        """The rows of pulls for the last choices of the layer and of those before it, and their trust [n, 1].

        A pass of many tokens chooses more than k experts: together they say as much as k.
        """
        rows, trust = [], []
        for source in range(self._num_sources):
            chosen = self._chosen[layer - source]
            rows.append(chosen + source * self._shape.num_experts)
            share = np.float32(self._shape.top_k) / np.float32(max(len(chosen), self._shape.top_k))
            trust.append(np.full((len(chosen), 1), share))
        return np.concatenate(rows), np.concatenate(trust)

    def _judge(self, features: FloatArray, pulled: FloatArray) -> FloatArray:
        """[E]: the values by `features` [8, E] and the sum of pulls [E]."""
        return _rough_sigmoid(_sum_of_rows(features * self._weights[:, None]) + pulled)

    def _learn(self, layer: int, used: IntArray, now: FloatArray) -> None:
        """One step of the values of the last visit: towards 1 for who was `used`, towards gamma times
        the value of `now` for the others."""
        features = self._features[layer]
        error = now * self._gamma
        error[used] = 1.0
        error -= self._judge(features, self._pulled[layer])
        gradient = _sum_of_rows((features * error).T)
        self._squares += gradient * gradient
        self._weights += gradient * _RATE / np.sqrt(self._squares)
        origins, trust = self._origins[layer]
        self._pulls[layer, origins] += error * (trust * _PULL_RATE)


def horizon(capacity: float) -> float:
    """gamma for a cache that holds this fraction of all experts: what is kept longer must look farther."""
    return 0.7 + 0.2 * min(capacity, 1.0)


def per_step(gamma: float, num_layers: int) -> float:
    """log of the discount of one layer-step."""
    return log(gamma) / num_layers


def _sum_of_rows(rows: FloatArray) -> FloatArray:
    """Over the first axis, one row after the other."""
    if not len(rows):
        return np.zeros(rows.shape[1:], dtype=np.float32)
    total: FloatArray = np.add.accumulate(rows, axis=0)[-1]
    return total


def _rough_log(values: FloatArray) -> FloatArray:
    """Natural log, linear between powers of two: within 0.06."""
    return values.view(np.int32).astype(np.float32) * _LOG_STEP - _LOG_ORIGIN


def _rough_sigmoid(z: FloatArray) -> FloatArray:
    """1 / (1 + exp(-z)) with an exp that is linear between powers of two."""
    power = np.clip(z * -_EXP_STEP, -_EXP_BOUND, _EXP_BOUND) + _EXP_ORIGIN
    values: FloatArray = _ONE / (power.astype(np.int32).view(np.float32) + _ONE)
    return values
