"""What keeping an expert is worth: E[gamma ** (visits of its layer until its next use - 1)], learnt online.

One logistic model for all layers and experts, trained by temporal differences (TD(0), Sutton 1988)
with AdaGrad, one step a layer-step, from zero weights. Features of an expert, all relative to its
expected use k / E: logs of three moving averages of use, of its share in the layer's history, and
of how often it followed the experts just used at its own layer and at the two layers before.
"""

from collections.abc import Sequence
from math import log

import numpy as np
import numpy.typing as npt

from compute.policies.base import CacheShape, FloatArray

IndexArray = npt.NDArray[np.int64]

#: What remains of a moving average after a visit.
KEPT = (0.9, 0.97, 0.995)
#: Layers back whose last choice tells what follows: the layer itself, the one before, the one before that.
NUM_SOURCES = 3
#: Rows of the features: a constant, the averages, the share, what follows whom.
SHARE = 1 + len(KEPT)
FOLLOWS = SHARE + 1
NUM_FEATURES = FOLLOWS + NUM_SOURCES

# Operands of vector work are arrays: a Python number costs a conversion each time.
_HALF = np.array(0.5, dtype=np.float32)
_ONE = np.array(1.0, dtype=np.float32)
#: Keeps logs finite, relative to k / E.
_FLOOR = np.array(0.02, dtype=np.float32)
#: What remains of a transition's count after a use of its origin.
_COUNT_KEPT = np.array(0.998, dtype=np.float32)
#: Uses of an origin that its transitions start with, spread like the layer's history.
_PRIOR_USES = np.array(5.0, dtype=np.float32)
_RATE = np.array(0.1, dtype=np.float32)
#: Combinations of sizes that are remembered: decode has one, a prefill one of its own for each layer.
_MAX_SPLITS = 1024
_NOBODY: IndexArray = np.empty(0, dtype=np.int64)


class _Layer:
    """What is remembered of one layer, E experts."""

    __slots__ = ("counts", "features", "is_new_sequence", "is_turned", "num_visits", "origins", "usage")

    def __init__(self, num_experts: int, prior_visits: float) -> None:
        #: [4, E]: the moving averages and the share's numerator, relative to k / E
        self.usage = np.ones((SHARE, num_experts), dtype=np.float32)
        self.usage[-1] = prior_visits
        self.num_visits = prior_visits
        #: [3E, E + 1]: how often an expert followed an origin (row source * E + origin); the origin's uses
        self.counts = np.zeros((NUM_SOURCES * num_experts, num_experts + 1), dtype=np.float32)
        #: the rows of `counts` whose origins were used before the coming visit
        self.origins: IndexArray = _NOBODY
        #: [8, 2, E]: features before a visit and after it; which is which turns with every visit
        self.features = np.zeros((NUM_FEATURES, 2, num_experts), dtype=np.float32)
        self.features[0] = 1.0
        self.is_turned = False
        self.is_new_sequence = False


class KeepValue:
    """`observe` a layer-step, and hear what keeping each of the layer's experts is worth."""

    def __init__(self, shape: CacheShape, gamma: float) -> None:
        num_experts = self._num_experts = shape.num_experts
        chance = min(shape.top_k / num_experts, 0.999)
        self._layers = [_Layer(num_experts, 1.0 / chance) for _ in range(shape.num_layers)]
        self._starts = np.arange(NUM_SOURCES)[:, None] * num_experts
        #: per layer [3, n]: the rows of `counts` of its last choice, for each source
        self._last_rows: list[IndexArray] = [np.empty((NUM_SOURCES, 0), np.int64)] * shape.num_layers
        self._gamma = np.array(gamma, dtype=np.float32)
        self._kept = np.array([*KEPT, 1.0], dtype=np.float32)[:, None]
        gained = np.array([*(1.0 - np.array(KEPT)), 1.0])[:, None] / chance
        self._gained = gained.astype(np.float32)
        self._chance = np.float32(chance)
        self._splits: dict[tuple[int, ...], tuple[IndexArray, FloatArray, FloatArray]] = {}
        self._first_keys = list(np.arange(shape.num_layers)[:, None] * num_experts)
        self._weights = np.zeros(NUM_FEATURES, dtype=np.float32)
        self._squares = np.full(NUM_FEATURES, 1e-3, dtype=np.float32)
        #: [E + 1]: 1 for who was used; the last one counts the visit itself
        self._is_used = np.zeros(num_experts + 1, dtype=np.float32)
        self._values = np.empty((2, num_experts), dtype=np.float32)

    def begin_sequence(self) -> None:
        """At each layer's next visit the averages move half-way to its history."""
        for layer in self._layers:
            layer.is_new_sequence = True

    def observe(self, index: int, keys: Sequence[int]) -> FloatArray:
        """Learn from the use of `keys` at layer `index`; the values [E], each in (0, 1)."""
        layer, last = self._layers[index], self._last_rows
        used = np.array(keys)
        used -= self._first_keys[index]
        self._is_used.fill(0.0)
        self._is_used[used] = 1.0
        self._is_used[-1] = 1.0
        is_first = not last[index].size
        last[index] = used + self._starts
        self._note_use(layer)
        if len(layer.origins):
            self._note_transitions(layer)
        sources = [last[(index - source) % len(last)][source] for source in range(NUM_SOURCES)]
        layer.origins = np.concatenate(sources)
        before, now = int(layer.is_turned), int(not layer.is_turned)
        layer.is_turned = not layer.is_turned
        self._describe(layer, layer.features[1:, now], tuple(map(len, sources)))
        values: FloatArray = self._judge(layer.features)
        if not is_first:
            self._learn(layer.features[:, before], values[before], values[now], used)
        worth: FloatArray = values[now]
        return worth

    def _note_use(self, layer: _Layer) -> None:
        usage = layer.usage
        if layer.is_new_sequence:
            layer.is_new_sequence = False
            usage[:-1] += usage[-1] / np.float32(layer.num_visits)
            usage[:-1] *= _HALF
        usage *= self._kept
        usage += self._gained * self._is_used[:-1]
        layer.num_visits += 1.0

    def _note_transitions(self, layer: _Layer) -> None:
        """Who was used now followed the origins of last time."""
        rows = layer.counts.take(layer.origins, axis=0)
        rows *= _COUNT_KEPT
        rows += self._is_used
        layer.counts[layer.origins] = rows

    def _describe(self, layer: _Layer, features: FloatArray, sizes: tuple[int, ...]) -> None:
        """features [7, E] of a layer whose use and transitions are noted; `sizes`: origins per source."""
        features[:SHARE] = layer.usage
        share = features[SHARE - 1]
        share /= np.float32(layer.num_visits)
        features[: SHARE - 1] += _FLOOR
        if all(sizes):
            self._follow(layer, sizes, share, features[SHARE:])
        else:
            features[SHARE:] = 1.0
        np.log(features, out=features)

    def _follow(self, layer: _Layer, sizes: tuple[int, ...], share: FloatArray, out: FloatArray) -> None:
        """out [3, E]: how much more than its share an expert follows those just used, mean over a source.

        An origin of few uses is trusted little: its transitions start with the share.
        """
        starts, per_origin, prior_per_origin = self._split(sizes)
        rows = layer.counts.take(layer.origins, axis=0)
        trust = rows[:, -1:] + _PRIOR_USES
        np.reciprocal(trust, out=trust)
        rows *= trust
        followed = np.add.reduceat(rows, starts, axis=0)
        np.divide(followed[:, :-1], share, out=out)
        out *= per_origin
        prior = np.add.reduceat(trust, starts, axis=0)
        prior *= prior_per_origin
        prior += _FLOOR
        out += prior

    def _split(self, sizes: tuple[int, ...]) -> tuple[IndexArray, FloatArray, FloatArray]:
        """Where each source's rows start; the factors [3, 1] of a mean over them, relative to k / E."""
        split = self._splits.get(sizes)
        if split is None:
            if len(self._splits) == _MAX_SPLITS:
                self._splits.clear()
            starts = np.array([0, sizes[0], sizes[0] + sizes[1]])
            mean = 1.0 / np.array(sizes, dtype=np.float32)[:, None]
            split = self._splits[sizes] = starts, mean / self._chance, mean * _PRIOR_USES
        return split

    def _judge(self, features: FloatArray) -> FloatArray:
        """[2, E]: the values by `features` [8, 2, E]."""
        values = self._values
        np.dot(self._weights, features.reshape(NUM_FEATURES, -1), out=values.reshape(-1))
        np.negative(values, out=values)
        np.exp(values, out=values)
        values += _ONE
        np.reciprocal(values, out=values)
        return values

    def _learn(self, features: FloatArray, before: FloatArray, now: FloatArray, used: IndexArray) -> None:
        """One AdaGrad step of the values `before`, by their `features` [8, E]: towards 1 for who was
        used, towards gamma times the value of now for the others."""
        error = now * self._gamma
        error[used] = 1.0
        error -= before
        gradient = np.dot(features, error)
        self._squares += gradient * gradient
        gradient *= _RATE
        gradient /= np.sqrt(self._squares)
        self._weights += gradient


def horizon(capacity: float) -> float:
    """gamma for a cache that holds this fraction of all experts: what is kept longer must look farther."""
    return 0.7 + 0.2 * min(capacity, 1.0)


def per_step(gamma: float, num_layers: int) -> float:
    """log of the discount of one layer-step."""
    return log(gamma) / num_layers
