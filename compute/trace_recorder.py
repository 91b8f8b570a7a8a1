"""TraceRecorder: an observer of a stage that keeps which experts each token used, pass by pass.

Knows no model and no tokenizer: whoever runs the model says where a sequence ends. One sequence
at a time, so a row is a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from compute.trace import HalfArray, Json, Trace

Number = TypeVar("Number", bound=np.generic)


class TraceRecorder:
    """`observe` goes into `Stage.observers`. With `keeps_probs` the routers' whole distributions are kept.

    Scores are the routers' probabilities of the chosen, where routers can be heard, else the
    weights that the model gives them.
    """

    def __init__(self, num_layers: int, num_experts: int, keeps_probs: bool = False) -> None:
        self._num_layers = num_layers
        self._num_experts = num_experts
        self._keeps_probs = keeps_probs
        #: One list a layer, one array [tokens, ...] a pass.
        self._experts: list[list[npt.NDArray[np.int16]]] = [[] for _ in range(num_layers)]
        self._scores: list[list[HalfArray]] = [[] for _ in range(num_layers)]
        self._probs: list[list[HalfArray]] = [[] for _ in range(num_layers)]
        self._pass_of: list[int] = []
        self._token_ids: list[int] = []
        self._phase: list[int] = []
        self._sequence: list[int] = []
        self._num_passes = 0
        self._num_sequences = 0

    def observe(self, layer: int, index: Tensor, weights: Tensor, probs: Tensor | None) -> None:
        """One layer-step: index [T, K], weights [T, K], probs [T, num_experts] if the router is heard."""
        if layer == 0:
            self._pass_of += [self._num_passes] * len(index)
            self._num_passes += 1
        chosen = weights if probs is None else probs.gather(1, index)
        self._experts[layer].append(index.to(torch.int16).numpy(force=True))
        self._scores[layer].append(_half(chosen))
        if self._keeps_probs:
            if probs is None:
                raise ValueError(
                    f"the router of MoE layer {layer} cannot be heard: record this model without --probs"
                )
            self._probs[layer].append(_half(probs))

    def end_sequence(self, token_ids: Sequence[int], num_given: int) -> None:
        """The tokens that went through since the last end; the first `num_given` of them were given."""
        num_rows = len(self._pass_of) - len(self._sequence)
        assert num_rows == len(token_ids), (num_rows, len(token_ids))
        self._token_ids += token_ids
        self._phase += [int(place >= num_given) for place in range(num_rows)]
        self._sequence += [self._num_sequences] * num_rows
        self._num_sequences += 1

    @property
    def num_tokens(self) -> int:
        return len(self._sequence)

    def trace(self, meta: dict[str, Json], keeps_passes: bool = True) -> Trace:
        """All ended sequences. Without `keeps_passes` each token counts as a pass of its own.

        Raises ValueError when nothing was seen, or when layers saw different tokens.
        """
        if not self._sequence:
            raise ValueError("no token went through the model: there is nothing to record")
        sizes = {sum(map(len, passes)) for passes in self._experts}
        if sizes != {len(self._sequence)}:
            raise ValueError(
                f"the MoE layers of this model saw different numbers of tokens ({sorted(sizes)}): "
                "its routing cannot be written as a trace"
            )
        return Trace(
            experts=_stacked(self._experts),
            scores=_stacked(self._scores),
            probs=_stacked(self._probs) if self._keeps_probs else None,
            phase=np.array(self._phase, dtype=np.uint8),
            sequence=np.array(self._sequence, dtype=np.int32),
            num_experts=self._num_experts,
            pass_number=np.array(self._pass_of, dtype=np.int32) if keeps_passes else None,
            token_id=np.array(self._token_ids, dtype=np.int32),
            meta=meta,
        )


def _half(values: Tensor) -> HalfArray:
    half: HalfArray = values.detach().to(torch.float16).numpy(force=True)
    return half


def _stacked(layers: list[list[npt.NDArray[Number]]]) -> npt.NDArray[Number]:
    """[tokens, layers, ...] of one list of [tokens, ...] a layer."""
    return np.stack([np.concatenate(passes) for passes in layers], axis=1)
