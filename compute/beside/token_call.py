"""A call of a model's forward that a recording may stand for: one new token per sequence, static cache.

Owns what such a call depends on: tensors, whose values may change from token to token, and everything
else, which may not. Knows transformers' arguments, caches and outputs; knows no device and no graph.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from transformers import StaticCache
from transformers.cache_utils import StaticLayer
from transformers.utils import ModelOutput

from compute.kernels.triton_plan import MAX_DECODE_TOKENS

#: An argument's name; for what lies in a dict (masks by kind of layer) the key as well.
Path = tuple[str, ...]
_CONSTANTS = (type(None), bool, int, float, str)


@dataclass(frozen=True, slots=True)
class Call:
    """`state`: the tensors that the cache is. Calls of equal signatures and one cache share a recording."""

    tensors: dict[Path, Tensor]
    constants: dict[Path, object]
    cache: StaticCache
    state: list[Tensor]
    signature: Hashable
    num_tokens: int

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        args: Sequence[object],
        kwargs: Mapping[str, object],
        device: torch.device,
        is_training: bool,
    ) -> Self | None:
        """None where the forward has to be run by the host; `names` are those of its parameters."""
        if torch.is_grad_enabled() or torch.is_autocast_enabled(device.type):
            return None  # a gradient needs its own tensors, autocast keeps weights that it has cast
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if len(given) != len(args) + len(kwargs):
            return None
        cache = given.pop("past_key_values", None)
        if not isinstance(cache, StaticCache) or not (state := state_of(cache, device)):
            return None
        tensors: dict[Path, Tensor] = {}
        constants: dict[Path, object] = {}
        for path, value in _leaves(given):
            if isinstance(value, Tensor) and value.device == device:
                tensors[path] = value
            elif type(value) in _CONSTANTS:
                constants[path] = value
            else:
                return None
        num_tokens = _num_tokens(tensors)
        if num_tokens is None:
            return None
        signature = (
            tuple((path, tensor.shape, tensor.dtype) for path, tensor in tensors.items()),
            tuple((path, type(value), value) for path, value in constants.items()),
            (state[0].shape, state[0].dtype, is_training),
        )
        return cls(tensors, constants, cache, state, signature, num_tokens)

    def arguments(self) -> dict[str, object]:
        return arguments(self.tensors, self.constants, self.cache)


def arguments(
    tensors: Mapping[Path, Tensor], constants: Mapping[Path, object], cache: StaticCache | None
) -> dict[str, object]:
    """What a forward is to be called with, by name."""
    named: dict[str, object] = {"past_key_values": cache}
    inner: dict[str, dict[str, object]] = {}
    for (name, *key), value in (*constants.items(), *tensors.items()):
        if key:
            named[name] = inner.setdefault(name, {})
            inner[name][key[0]] = value
        else:
            named[name] = value
    return named


def state_of(cache: StaticCache, device: torch.device) -> list[Tensor]:
    """The tensors that `cache` is, all on `device`; none where it is more than them, or moves to the host.

    A sliding window counts its tokens in Python, where a recurrent state notes that it has begun.
    """
    state: list[Tensor] = []
    for layer in () if cache.offloading else cache.layers:
        if type(layer) is not StaticLayer or not layer.is_initialized or layer.keys.device != device:
            return []
        state += (layer.keys, layer.values, layer.cumulative_length)
    return state


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What a forward answers beside the values of tensors: its class, and where the cache stands in it."""

    output_class: type[ModelOutput]
    cache_names: tuple[str, ...]

    @classmethod
    def of(cls, output: object, cache: StaticCache) -> Self | None:
        """None for a tuple, and for an output with more in it than tensors: hidden states, attentions."""
        if not isinstance(output, ModelOutput):
            return None
        rest = {name: value for name, value in output.items() if not isinstance(value, Tensor)}
        if any(value is not cache for value in rest.values()):
            return None
        return cls(type(output), tuple(rest))

    def fill(self, tensors: Mapping[str, Tensor], cache: StaticCache) -> ModelOutput:
        return self.output_class(**tensors, **dict.fromkeys(self.cache_names, cache))


def tensors_of(output: ModelOutput) -> dict[str, Tensor]:
    return {name: value for name, value in output.items() if isinstance(value, Tensor)}


def _leaves(given: Mapping[str, object]) -> Iterator[tuple[Path, object]]:
    """Arguments, and the entries of those that are dicts; an empty dict stays what it is."""
    for name, value in given.items():
        if isinstance(value, dict) and value:
            yield from (((name, str(key)), entry) for key, entry in value.items())
        else:
            yield (name,), value


def _num_tokens(tensors: Mapping[Path, Tensor]) -> int | None:
    """How many sequences get one new token each; None for another number of tokens, or of sequences."""
    tokens = tensors.get(("input_ids",))
    if tokens is None:
        tokens = tensors.get(("inputs_embeds",))
    if tokens is None or tokens.dim() < 2 or tokens.shape[1] != 1:
        return None
    num_tokens = int(tokens.shape[0])
    return num_tokens if 1 <= num_tokens <= MAX_DECODE_TOKENS else None
