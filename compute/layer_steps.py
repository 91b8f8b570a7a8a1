"""Layer-steps of a trace: one layer of one forward pass with the distinct experts that it used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from compute.arrays import IntArray
from compute.policies.base import FloatArray
from compute.policies.future import Future
from compute.trace import HalfArray, Int16Array, Trace

#: Passes whose layer-steps are Python objects at the same time.
PASSES_AT_ONCE = 512


class Step(NamedTuple):
    """A layer-step: `keys` (distinct, ascending) of `layer`."""

    layer: int
    keys: list[int]


class Pass(NamedTuple):
    """A forward pass: its `steps` by layer, those without an expert left out."""

    number: int
    num_tokens: int
    is_new_sequence: bool
    steps: list[Step]


@dataclass(frozen=True, slots=True, eq=False)
class LayerSteps:
    """All layer-steps of a trace in flat arrays, made into Python objects a few passes at a time.

    key = layer * num_experts + expert. Step s: layer[s], keys[start[s]:start[s + 1]]; pass p:
    steps step_of_pass[p]:step_of_pass[p + 1], tokens token_of_pass[p]:token_of_pass[p + 1].
    """

    trace: Trace
    num_layers: int
    layer: IntArray
    keys: IntArray
    start: IntArray
    step_of_pass: IntArray
    token_of_pass: IntArray
    is_new_sequence: npt.NDArray[np.bool_]
    #: The trace's layer that these steps' layer 0 is.
    first_layer: int = 0

    @property
    def num_experts(self) -> int:
        return self.trace.num_experts

    @property
    def top_k(self) -> int:
        return self.trace.top_k

    @property
    def num_passes(self) -> int:
        return len(self.is_new_sequence)

    @property
    def num_lookups(self) -> int:
        return len(self.keys)

    @property
    def has_whole_probs(self) -> bool:
        """Whether the trace kept the probabilities of the experts that were not chosen, too."""
        return self.trace.probs is not None

    @property
    def future(self) -> Future:
        return Future(self.keys, self.start)

    def passes(self) -> Iterator[Pass]:
        """Every forward pass in order."""
        for first in range(0, self.num_passes, PASSES_AT_ONCE):
            yield from self._some(first, min(first + PASSES_AT_ONCE, self.num_passes))

    def _some(self, first: int, end: int) -> Iterator[Pass]:
        low, high = self.step_of_pass[first], self.step_of_pass[end]
        offset = self.start[low]
        keys = self.keys[offset : self.start[high]].tolist()
        cuts = (self.start[low : high + 1] - offset).tolist()
        steps = [
            Step(layer, keys[a:b])
            for layer, a, b in zip(self.layer[low:high].tolist(), cuts, cuts[1:], strict=False)
        ]
        bounds = (self.step_of_pass[first : end + 1] - low).tolist()
        sizes = np.diff(self.token_of_pass[first : end + 1]).tolist()
        is_new = self.is_new_sequence[first:end].tolist()
        for index in range(end - first):
            yield Pass(first + index, sizes[index], is_new[index], steps[bounds[index] : bounds[index + 1]])

    def of_layer(self, layer: int) -> LayerSteps:
        """One layer's steps, as if the model had that layer only."""
        chosen = np.flatnonzero(self.layer == layer)
        sizes = np.diff(self.start)[chosen]
        is_kept = np.repeat(self.layer == layer, np.diff(self.start))
        step_of_pass = np.searchsorted(chosen, self.step_of_pass)
        return replace(
            self,
            num_layers=1,
            layer=np.zeros(len(chosen), dtype=np.int64),
            keys=self.keys[is_kept] - layer * self.num_experts,
            start=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            step_of_pass=step_of_pass.astype(np.int64),
            first_layer=self.first_layer + layer,
        )

    def probs(self, pass_number: int, step: Step) -> FloatArray | None:
        """What a policy may see of the router: [num_experts], the mean over the pass's tokens.

        Where the trace kept only the chosen ones' probabilities, the others are NaN.
        """
        trace, layer = self.trace, self.first_layer + step.layer
        tokens = slice(self.token_of_pass[pass_number], self.token_of_pass[pass_number + 1])
        experts = trace.experts[tokens, layer]
        if trace.probs is not None:
            is_computed = experts.max(axis=1) >= 0
            mean: FloatArray = trace.probs[tokens, layer][is_computed].mean(axis=0, dtype=np.float32)
            return mean
        if trace.scores is None:
            return None
        return _mean_scores(experts, trace.scores[tokens, layer], self.num_experts)


def layer_steps(trace: Trace) -> LayerSteps:
    """Group a trace's tokens into passes, and a pass's experts into layer-steps."""
    token_of_pass = _token_of_pass(trace)
    pass_of_token = np.repeat(np.arange(len(token_of_pass) - 1), np.diff(token_of_pass))
    place = pass_of_token[:, None] * trace.num_layers + np.arange(trace.num_layers)
    codes = place[:, :, None] * trace.num_experts + trace.experts
    codes = _distinct(codes[trace.experts >= 0])
    place, is_first = codes // trace.num_experts, np.ones(len(codes), dtype=bool)
    is_first[1:] = place[1:] != place[:-1]
    begin = np.flatnonzero(is_first)
    pass_of_step = place[begin] // trace.num_layers
    sequence = trace.sequence[token_of_pass[:-1]]
    return LayerSteps(
        trace=trace,
        num_layers=trace.num_layers,
        layer=place[begin] % trace.num_layers,
        keys=codes % (trace.num_layers * trace.num_experts),
        start=np.append(begin, len(codes)),
        step_of_pass=np.searchsorted(pass_of_step, np.arange(len(token_of_pass))),
        token_of_pass=token_of_pass,
        is_new_sequence=np.append(True, sequence[1:] != sequence[:-1]),
    )


def _distinct(codes: IntArray) -> IntArray:
    """np.unique, several times as fast on what is nearly in order."""
    codes.sort(kind="stable")
    is_new = np.ones(len(codes), dtype=bool)
    is_new[1:] = codes[1:] != codes[:-1]
    return codes[is_new]


def _token_of_pass(trace: Trace) -> IntArray:
    """The first token of each pass, and the number of tokens at the end."""
    if trace.pass_number is None:
        return np.arange(trace.num_tokens + 1)
    changes = np.flatnonzero(np.diff(trace.pass_number)) + 1
    return np.concatenate([[0], changes, [trace.num_tokens]]).astype(np.int64)


def _mean_scores(experts: Int16Array, scores: HalfArray, num_experts: int) -> FloatArray:
    """[tokens, k] scores as [num_experts]: their mean over the tokens computed, NaN where never chosen."""
    mean = np.full(num_experts, np.nan, dtype=np.float32)
    is_given = experts >= 0
    if len(experts) == 1 and is_given.all():
        mean[experts[0]] = scores[0]
        return mean
    num_computed = np.count_nonzero(is_given.any(axis=1))
    mean[experts[is_given]] = 0.0
    np.add.at(mean, experts[is_given], scores[is_given].astype(np.float32) / num_computed)
    return mean


# --- checks --------------------------------------------------------------------------------------
