"""What an eviction policy is: it observes, and it names victims. Nothing else.

A policy is pure: no clock, no device, no I/O; it knows experts by key (layer * num_experts +
expert). The live runtime and the replay drive the very same objects, in this order for one
layer-step: `choose_victims` for the step's misses, `on_evict` for each victim, `on_insert` for
each newcomer, then one `on_access` with the whole set. Asking changes nothing.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What a policy may know of the cache it serves."""

    num_layers: int
    num_experts: int
    top_k: int
    num_slots: int


class EvictionPolicy(Protocol):
    """One instance serves one cache. Built as `Policy(shape)`, with options as keywords."""

    #: Whether `on_access` wants the router's distribution (costs a little in the live runtime).
    needs_probs: bool

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        """A forward pass over `num_tokens` tokens begins."""

    def on_access(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> None:
        """One layer-step used `keys` (distinct, ascending; not all need be resident).

        `probs`: [num_experts], the router's distribution at this layer, averaged over the pass's
        tokens; None where it is not known, NaN for each expert of which it is not known (a trace
        that kept only the chosen ones; a policy with `needs_whole_probs` set gets None instead).
        """

    def on_insert(self, key: int, is_speculative: bool) -> None:
        """`key` became resident (for a prefetch: was given its slot)."""

    def on_evict(self, key: int) -> None:
        """`key` left its slot."""

    def choose_victims(self, count: int, held: Container[int]) -> list[int]:
        """Up to `count` resident keys outside `held`, the first to go first. Changes nothing."""


class StepPolicy(EvictionPolicy, Protocol):
    """A policy that wants to know for which layer-step it is asked for victims."""

    def on_step(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> None:
        """A layer-step begins that needs `keys`; it ends with its `on_access`, which says the same."""


class AdmissionPolicy(EvictionPolicy, Protocol):
    """A policy that may serve an expert without keeping it. Asked before `choose_victims`."""

    def choose_admitted(self, missing: Sequence[int], num_free: int, held: Container[int]) -> list[int]:
        """Those of a layer-step's `missing` keys that shall get a slot; the others pass through.

        `num_free` of them, fewer than all, cost no victim. Not asked where nobody has to leave, nor
        where a step needs more experts than there are slots. Changes nothing.
        """
