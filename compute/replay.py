"""Replay: what a cache under a policy would have made of a trace's layer-steps.

Drives the very policy objects of the live runtime, in its order of calls, with nothing prefetched;
the slot table is reduced to a set of keys, and a test proves that `Residency` counts the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from enum import Enum

from compute.layer_steps import LayerSteps
from compute.policies import named
from compute.policies.base import CacheShape, EvictionPolicy, FloatArray
from compute.policies.checked import Checked
from compute.residency import Residency

#: Above this a set is asked faster than a list.
LONG_STEP = 12


class Scope(Enum):
    """Who shares the slots: all layers one pool, or each layer a fixed share of its own."""

    GLOBAL = "global"
    LAYER = "layer"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Counted per (forward pass, layer, distinct expert); `seconds` is the replay's own time."""

    lookups: int
    misses: int
    evictions: int
    seconds: float

    @property
    def hits(self) -> int:
        return self.lookups - self.misses

    @property
    def hit_rate(self) -> float:
        return self.hits / self.lookups if self.lookups else 0.0

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(
            self.lookups + other.lookups,
            self.misses + other.misses,
            self.evictions + other.evictions,
            self.seconds + other.seconds,
        )


def num_slots_of(capacity: float, steps: LayerSteps, scope: Scope) -> int:
    """Slots of one cache: `capacity` is a fraction of the experts it serves. Raises ValueError."""
    if not 0.0 < capacity <= 1.0:
        raise ValueError(f"capacity {capacity} is not a fraction of the experts, above 0 and at most 1")
    num_layers = steps.num_layers if scope is Scope.GLOBAL else 1
    return max(1, round(capacity * num_layers * steps.num_experts))


def replay(steps: LayerSteps, policy: str, num_slots: int, scope: Scope = Scope.GLOBAL) -> Outcome:
    """Replay under the policy of a spec (see `named`). `num_slots` are those of one cache.

    Raises ValueError for a wrong spec, and for fewer slots than a token needs at once.
    """
    if scope is Scope.LAYER:
        shares = [replay(steps.of_layer(layer), policy, num_slots) for layer in range(steps.num_layers)]
        return sum(shares[1:], shares[0])
    shape = CacheShape(steps.num_layers, steps.num_experts, steps.top_k, num_slots)
    chosen = named(policy, shape, steps.future)
    fewest: Callable[[], tuple[int, int]] | None = getattr(chosen, "fewest_misses", None)
    if fewest is not None:
        return _bound(steps, fewest)
    return drive(steps, Checked(chosen) if ":" in policy else chosen, num_slots)


def _bound(steps: LayerSteps, fewest_misses: Callable[[], tuple[int, int]]) -> Outcome:
    """The outcome of a bound that no slot table can reach, as it counts itself."""
    begin = time.perf_counter()
    misses, evictions = fewest_misses()
    return Outcome(steps.num_lookups, misses, evictions, time.perf_counter() - begin)


def wants_probs(policy: EvictionPolicy, steps: LayerSteps) -> bool:
    """Whether `policy` is to be shown what the trace of `steps` kept of the routers' probabilities."""
    needs_whole = getattr(policy, "needs_whole_probs", False)
    return policy.needs_probs and (steps.has_whole_probs or not needs_whole)


def drive(steps: LayerSteps, policy: EvictionPolicy, num_slots: int) -> Outcome:
    """Show `policy` every layer-step, and do as it says."""
    begin = time.perf_counter()
    cache = _Cache(policy, num_slots, steps.top_k)
    resident, admit, on_access = cache.resident, cache.admit, policy.on_access
    on_step: Callable[[int, Sequence[int], FloatArray | None], None] | None
    on_step = getattr(policy, "on_step", None)
    needs_probs, probs = wants_probs(policy, steps), None
    for pass_ in steps.passes():
        policy.begin_pass(pass_.num_tokens, pass_.is_new_sequence)
        for step in pass_.steps:
            layer, keys = step
            if needs_probs:
                probs = steps.probs(pass_.number, step)
            if on_step is not None:
                on_step(layer, keys, probs)
            missing = [key for key in keys if key not in resident]
            if missing:
                admit(keys, missing)
            on_access(layer, keys, probs)
    return Outcome(steps.num_lookups, cache.misses, cache.evictions, time.perf_counter() - begin)


class _Cache:
    """The set of resident keys, and the rule of `Residency.access` for those that are missing."""

    def __init__(self, policy: EvictionPolicy, num_slots: int, top_k: int) -> None:
        Residency(num_slots, top_k, policy)  # refuses what the runtime refuses
        self.resident: set[int] = set()
        self.misses = 0
        self.evictions = 0
        self._num_slots = num_slots
        self._num_free = num_slots
        self._policy = policy
        self._choose_admitted: Callable[[Sequence[int], int, Container[int]], list[int]] | None
        self._choose_admitted = getattr(policy, "choose_admitted", None)

    def admit(self, keys: list[int], missing: list[int]) -> None:
        """Give slots to `missing`, at the cost of victims where need be."""
        policy, resident = self._policy, self.resident
        self.misses += len(missing)
        if len(keys) <= self._num_slots:
            held = keys if len(keys) <= LONG_STEP else set(keys)
            if self._choose_admitted is not None and len(missing) > self._num_free:
                missing = self._choose_admitted(missing, self._num_free, held)
            lacking = len(missing) - self._num_free
            if lacking > 0:
                victims = policy.choose_victims(lacking, held)
                for key in victims:
                    resident.remove(key)
                    policy.on_evict(key)
                self.evictions += len(victims)
                self._num_free += len(victims)
        missing = missing[: self._num_free]
        for key in missing:
            resident.add(key)
            policy.on_insert(key, False)
        self._num_free -= len(missing)
