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
_NOBODY: IndexArray = np.empty(0, dtype=np.int64)


class _Layer:
    """What is remembered of one layer, E experts."""

    __slots__ = (
        "counts",
        "features",
        "is_new_sequence",
        "num_visits",
        "origins",
        "origins_of",
        "usage",
        "uses",
    )

    def __init__(self, num_experts: int, prior_visits: float) -> None:
        #: [4, E]: the moving averages and the share's numerator, relative to k / E
        self.usage = np.ones((SHARE, num_experts), dtype=np.float32)
        self.usage[-1] = prior_visits
        self.num_visits = prior_visits
        #: [3E, E]: how often an expert followed an origin; [3E]: the origin's uses. Row source * E + origin.
        self.counts = np.zeros((NUM_SOURCES * num_experts, num_experts), dtype=np.float32)
        self.uses = np.zeros(NUM_SOURCES * num_experts, dtype=np.float32)
        #: rows of `counts` that preceded this visit, and the number of them per source
        self.origins: IndexArray = _NOBODY
        self.origins_of: list[IndexArray] = []
        #: [8, 2E]: features before this visit, and after it
        self.features = np.zeros((NUM_FEATURES, 2 * num_experts), dtype=np.float32)
        self.features[0] = 1.0
        self.is_new_sequence = False


class KeepValue:
    """`observe` a layer-step, and hear what keeping each of the layer's experts is worth."""

    def __init__(self, shape: CacheShape, gamma: float) -> None:
        self._num_layers, self._num_experts = shape.num_layers, shape.num_experts
        chance = min(shape.top_k / shape.num_experts, 0.999)
        self._layers = [_Layer(shape.num_experts, 1.0 / chance) for _ in range(shape.num_layers)]
        self._last_used = [_NOBODY] * shape.num_layers
        self._gamma = np.array(gamma, dtype=np.float32)
        self._kept = np.array([*KEPT, 1.0], dtype=np.float32)[:, None]
        gained = np.array([*(1.0 - np.array(KEPT)), 1.0])[:, None] / chance
        self._gained = gained.astype(np.float32)
        self._chance = np.array(chance, dtype=np.float32)
        self._weights = np.zeros(NUM_FEATURES, dtype=np.float32)
        self._squares = np.full(NUM_FEATURES, 1e-3, dtype=np.float32)
        self._is_used = np.zeros(shape.num_experts, dtype=np.float32)
        self._values = np.empty(2 * shape.num_experts, dtype=np.float32)

    def begin_sequence(self) -> None:
        """At each layer's next visit the averages move half-way to its history."""
        for layer in self._layers:
            layer.is_new_sequence = True

    def observe(self, index: int, keys: Sequence[int]) -> FloatArray:
        """Learn from the use of `keys` at layer `index`; the values [E], each in (0, 1)."""
        layer = self._layers[index]
        used = np.array(keys)
        used -= index * self._num_experts
        is_used = self._is_used
        is_used.fill(0.0)
        is_used[used] = 1.0
        is_first = not len(self._last_used[index])
        self._last_used[index] = used
        self._note_use(layer)
        self._note_transitions(layer, index)
        self._describe(layer)
        values = self._judge(layer.features)
        if not is_first:
            self._learn(layer.features[:, : self._num_experts], values, used)
        return values[self._num_experts :]

    def _note_use(self, layer: _Layer) -> None:
        usage = layer.usage
        if layer.is_new_sequence:
            layer.is_new_sequence = False
            usage[:-1] += usage[-1] / np.float32(layer.num_visits)
            usage[:-1] *= _HALF
        usage *= self._kept
        usage += self._gained * self._is_used
        layer.num_visits += 1.0

    def _note_transitions(self, layer: _Layer, index: int) -> None:
        """Who was used now followed the origins of last time; note the origins for the next time."""
        origins = layer.origins
        if len(origins):
            rows = layer.counts.take(origins, axis=0)
            rows *= _COUNT_KEPT
            rows += self._is_used
            layer.counts[origins] = rows
            uses = layer.uses.take(origins)
            uses *= _COUNT_KEPT
            uses += _ONE
            layer.uses[origins] = uses
        layer.origins_of = [
            self._last_used[index - source] + source * self._num_experts for source in range(NUM_SOURCES)
        ]
        layer.origins = np.concatenate(layer.origins_of)

    def _describe(self, layer: _Layer) -> None:
        """The features before this visit move to the left half; those after it fill the right one."""
        features = layer.features
        features[:, : self._num_experts] = features[:, self._num_experts :]
        now = features[1:, self._num_experts :]
        now[:SHARE] = layer.usage
        share = now[SHARE - 1]
        share /= np.float32(layer.num_visits)
        now[: SHARE - 1] += _FLOOR
        self._follow(layer, share, now[SHARE:])
        np.log(now, out=now)

    def _follow(self, layer: _Layer, share: FloatArray, out: FloatArray) -> None:
        """out [3, E]: how much more often than usual an expert follows those just used, on average."""
        trust = layer.uses.take(layer.origins)
        trust += _PRIOR_USES
        np.reciprocal(trust, out=trust)
        rows = layer.counts.take(layer.origins, axis=0)
        end = 0
        for source, origins in enumerate(layer.origins_of):
            start, end = end, end + len(origins)
            if start == end:
                out[source] = 1.0
                continue
            np.dot(trust[start:end], rows[start:end], out=out[source])
            out[source] /= share
            out[source] *= np.float32(1.0 / (float(self._chance) * len(origins)))
            out[source] += np.float32(trust[start:end].mean() * _PRIOR_USES)
        out += _FLOOR

    def _judge(self, features: FloatArray) -> FloatArray:
        """[2E]: the values by the features before the visit, and after it."""
        values = self._values
        np.dot(self._weights, features, out=values)
        np.negative(values, out=values)
        np.exp(values, out=values)
        values += _ONE
        np.reciprocal(values, out=values)
        return values

    def _learn(self, features: FloatArray, values: FloatArray, used: IndexArray) -> None:
        """One AdaGrad step towards 1 for who was used, gamma times the value of now for the others."""
        error = values[self._num_experts :] * self._gamma
        error[used] = 1.0
        error -= values[: self._num_experts]
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
