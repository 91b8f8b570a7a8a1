"""The compiled `KeepValue`: the same arrays and the same values to the last bit, by keep_value.c.

`keep_value` gives the compiled one where the package was built with a C compiler, else numpy's. Model
follows that of keep_value.c field by field; ABI tells a library of another version.
"""

import ctypes
import logging
from collections.abc import Sequence
from ctypes import Structure, c_float, c_int32, c_void_p
from functools import cache
from pathlib import Path

import numpy as np

from compute.policies.base import CacheShape, FloatArray
from compute.policies.keep_value import NUM_FEATURES, KeepValue

LIBRARY = Path(__file__).with_name("libkeepvalue.so")
ABI = 1
_ADVICE = "have it compiled: python -m compute.kernels.build"

_FLOATS = ("usage", "visits", "follows", "pulls", "routed", "weights", "squares", "features", "pulled")
_OWN = ("origins", "trust", "counts", "scratch", "new_origins")


class Model(Structure):
    """`Model` of keep_value.c."""

    _fields_ = (
        *((name, c_int32) for name in ("num_layers", "num_experts", "num_sources", "top_k")),
        *((name, c_float) for name in ("gamma", "per_chance")),
        *((name, c_void_p) for name in (*_FLOATS, *_OWN)),
    )


class CompiledKeepValue(KeepValue):
    """Raises ValueError (one sentence) where there is no compiled keep_value.c of this version."""

    def __init__(self, shape: CacheShape, gamma: float) -> None:
        super().__init__(shape, gamma)
        self._c_observe = _library().keep_value_observe
        num_layers, num_experts, num_sources = shape.num_layers, shape.num_experts, self._num_sources
        self._arrays = {name: getattr(self, f"_{name}") for name in _FLOATS} | {
            "origins": np.zeros((num_layers, num_sources * num_experts), dtype=np.int32),
            "trust": np.zeros((num_layers, num_sources * num_experts), dtype=np.float32),
            "counts": np.zeros((num_layers, 2), dtype=np.int32),
            "scratch": np.zeros((NUM_FEATURES + 4 + num_sources, num_experts), dtype=np.float32),
            "new_origins": np.zeros(num_sources * num_experts, dtype=np.int32),
        }
        self._model = Model(
            *(num_layers, num_experts, num_sources, shape.top_k, self._gamma, self._per_chance),
            *(array.ctypes.data for array in self._arrays.values()),
        )
        self._values = np.empty(num_experts, dtype=np.float32)
        self._used = np.empty(num_experts, dtype=np.int32)
        self._addresses = self._used.ctypes.data, self._values.ctypes.data
        self._model_address = ctypes.addressof(self._model)

    def observe(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> FloatArray:
        num_used = len(keys)
        self._used[:num_used] = keys
        self._used[:num_used] -= layer * self._shape.num_experts
        used, values = self._addresses
        said = None if probs is None else np.ascontiguousarray(probs, dtype=np.float32)
        address = None if said is None else said.ctypes.data
        self._c_observe(self._model_address, layer, used, num_used, address, values)
        return self._values


def keep_value(shape: CacheShape, gamma: float) -> KeepValue:
    """The compiled one, or numpy's, which takes 15 to 30 times as long and says so."""
    try:
        return CompiledKeepValue(shape, gamma)
    except ValueError as error:
        _tell_once(str(error))
        return KeepValue(shape, gamma)


@cache
def _tell_once(reason: str) -> None:
    logging.getLogger("sidestage").warning(
        "reuse-distance learns with numpy here, 0.1 to 0.2 ms a layer: %s, or pass --policy lru",
        reason,
    )


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(LIBRARY))
        is_ours = library.keep_value_abi() == ABI
    except (OSError, AttributeError) as error:
        raise ValueError(f"{LIBRARY.name} cannot be used ({error}); {_ADVICE}") from error
    if not is_ours:
        raise ValueError(f"{LIBRARY.name} is of another version of sidestage; {_ADVICE}")
    library.keep_value_observe.argtypes = (c_void_p, c_int32, c_void_p, c_int32, c_void_p, c_void_p)
    library.keep_value_observe.restype = None
    return library
