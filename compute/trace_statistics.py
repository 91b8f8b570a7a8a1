"""What a trace tells about its model: how skewed its experts' popularity is, how long they stay in use.

Pure arithmetic over a trace; knows no cache (`compute.stack_distance` does) and no file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compute.policies.base import FloatArray
from compute.trace import Int16Array, Trace


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """`busiest_quarter`: the share of uses that the busiest quarter of the experts takes.

    `entropy` of the uses over the experts, 1 = all alike, 0 = always the same one. `overlap`: the
    share of a token's experts that the token before it, in its sequence, used too;
    `overlap_by_chance`: what their popularity alone would make of it. None: no two such tokens.
    """

    layer: int
    num_tokens: int
    busiest_quarter: float
    entropy: float
    overlap: float | None
    overlap_by_chance: float


def popularity(trace: Trace) -> FloatArray:
    """[layers, num_experts]: each expert's share of its layer's uses."""
    counts = np.stack(
        [_uses(trace.experts[:, layer], trace.num_experts) for layer in range(trace.num_layers)]
    )
    share: FloatArray = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).astype(np.float32)
    return share


def layer_statistics(trace: Trace) -> list[LayerStatistics]:
    """Of every layer, over the tokens for which it was computed."""
    shares = popularity(trace)
    return [_of_layer(trace, layer, shares[layer].astype(np.float64)) for layer in range(trace.num_layers)]


def _of_layer(trace: Trace, layer: int, share: npt.NDArray[np.float64]) -> LayerStatistics:
    experts = trace.experts[:, layer]
    is_computed = experts.min(axis=1) >= 0
    busiest = np.sort(share)[::-1][: max(1, round(trace.num_experts / 4))]
    return LayerStatistics(
        layer=layer,
        num_tokens=int(is_computed.sum()),
        busiest_quarter=float(busiest.sum()),
        entropy=_entropy(share),
        overlap=_overlap(experts, trace.sequence, is_computed),
        overlap_by_chance=min(1.0, float((share**2).sum()) * trace.top_k),
    )


def _uses(experts: Int16Array, num_experts: int) -> npt.NDArray[np.int64]:
    """How often each expert was used."""
    return np.bincount(experts[experts >= 0], minlength=num_experts)


def _entropy(share: npt.NDArray[np.float64]) -> float:
    if len(share) == 1:
        return 1.0
    given = share[share > 0]
    return abs(float(-(given * np.log(given)).sum() / np.log(len(share))))


def _overlap(
    experts: Int16Array, sequence: npt.NDArray[np.int32], is_computed: npt.NDArray[np.bool_]
) -> float | None:
    """The mean share of a token's experts that its predecessor used as well."""
    is_pair = (sequence[1:] == sequence[:-1]) & is_computed[1:] & is_computed[:-1]
    if not is_pair.any():
        return None
    now, before = experts[1:][is_pair], experts[:-1][is_pair]
    return float((now[:, :, None] == before[:, None, :]).any(axis=2).mean())
