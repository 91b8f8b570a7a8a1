"""A trace: which experts each token used, layer by layer. Checked when it is made; knows no file
(`compute.trace_file` does) and no cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Int16Array = npt.NDArray[np.int16]
Int32Array = npt.NDArray[np.int32]
HalfArray = npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Routing of some tokens. Raises ValueError (one sentence) where the arrays do not agree.

    experts [tokens, layers, k], -1 = not computed; scores [tokens, layers, k], probability of the
    chosen; probs [tokens, layers, num_experts]; phase [tokens], 0 prefill, 1 decode; sequence
    [tokens]; pass_number [tokens], equal for tokens that went through together (None: each alone);
    predicted [tokens, layers, lookahead, n]: the n experts that the gate named for this layer
    d layers before it, at place d - 1, most wanted first; -1 = none.
    """

    experts: Int16Array
    phase: npt.NDArray[np.uint8]
    sequence: Int32Array
    num_experts: int
    scores: HalfArray | None = None
    probs: HalfArray | None = None
    pass_number: Int32Array | None = None
    token_id: Int32Array | None = None
    predicted: Int16Array | None = None
    meta: dict[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_values(self)

    @property
    def num_tokens(self) -> int:
        return int(self.experts.shape[0])

    @property
    def num_layers(self) -> int:
        return int(self.experts.shape[1])

    @property
    def top_k(self) -> int:
        return int(self.experts.shape[2])

    def first(self, num_tokens: int) -> Trace:
        """The trace of its first `num_tokens` tokens (all, where it has no more)."""
        if num_tokens < 1:
            raise ValueError(f"{num_tokens} tokens asked of a trace: at least 1 is needed")
        names = ("experts", "phase", "sequence", "scores", "probs", "pass_number", "token_id", "predicted")
        cut = {name: getattr(self, name)[:num_tokens] for name in names if getattr(self, name) is not None}
        return replace(self, **cut)


def _check_shapes(trace: Trace) -> None:
    shape = trace.experts.shape
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f'its "experts" have the shape {shape}, not [tokens, layers, k]')
    if not 1 <= trace.top_k <= trace.num_experts <= np.iinfo(np.int16).max:
        raise ValueError(f"its tokens use {trace.top_k} of {trace.num_experts} experts, which cannot be")
    wanted: dict[str, tuple[int, ...]] = {
        "phase": shape[:1],
        "sequence": shape[:1],
        "scores": shape,
        "probs": (*shape[:2], trace.num_experts),
        "pass_number": shape[:1],
        "token_id": shape[:1],
    }
    for name, expected in wanted.items():
        array = getattr(trace, name)
        if array is not None and array.shape != expected:
            told = name.removesuffix("_number")
            raise ValueError(f'its "{told}" have the shape {array.shape}, but "experts" ask for {expected}')
    if trace.predicted is not None:
        _check_predicted_shape(trace.predicted.shape, shape, trace.num_experts)


def _check_predicted_shape(shape: tuple[int, ...], experts: tuple[int, ...], num_experts: int) -> None:
    is_right = len(shape) == 4 and shape[:2] == experts[:2]
    if not is_right or not (1 <= shape[2] <= max(1, shape[1] - 1) and 1 <= shape[3] <= num_experts):
        raise ValueError(
            f'its "predicted" have the shape {shape}, not [{experts[0]}, {experts[1]}, lookahead below '
            f"{experts[1]}, up to {num_experts} experts]"
        )


def _check_values(trace: Trace) -> None:
    low, high = int(trace.experts.min()), int(trace.experts.max())
    if low < -1 or high >= trace.num_experts:
        raise ValueError(
            f"its expert ids reach from {low} to {high}, allowed are 0 to {trace.num_experts - 1}, "
            "and -1 for not computed"
        )
    if high < 0:
        raise ValueError("all its expert ids are -1: nothing was computed")
    if trace.phase.max() > 1:
        raise ValueError('its "phase" holds numbers beside 0 (prefill) and 1 (decode)')
    for name in ("scores", "probs"):
        array = getattr(trace, name)
        if array is not None and not (np.isfinite(array).all() and array.min() >= 0):
            raise ValueError(f'its "{name}" are not all finite and at least 0')
    if trace.pass_number is not None:
        _check_passes(trace.pass_number)
    if trace.predicted is not None:
        _check_predicted(trace.predicted, trace.num_experts)


def _check_predicted(predicted: Int16Array, num_experts: int) -> None:
    low, high = int(predicted.min()), int(predicted.max())
    if low < -1 or high >= num_experts:
        raise ValueError(
            f'its "predicted" reach from {low} to {high}, allowed are 0 to {num_experts - 1}, and -1 for none'
        )
    for ahead in range(1, predicted.shape[2] + 1):
        if predicted[:, :ahead, ahead - 1].max() >= 0:
            raise ValueError(
                f'its "predicted" say what was named {ahead} layers before one of the first {ahead} layers'
            )
    ordered = np.sort(predicted, axis=-1)
    if ((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any():
        raise ValueError('its "predicted" name an expert twice for one token and layer')


def _check_passes(numbers: Int32Array) -> None:
    runs = np.concatenate([numbers[:1], numbers[1:][np.diff(numbers) != 0]])
    if len(np.unique(runs)) != len(runs):
        raise ValueError('a number in its "pass" comes back after another one: a pass is one run of tokens')
