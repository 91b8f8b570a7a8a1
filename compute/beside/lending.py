"""A residency of which some slots are lent to the device, which brings missing experts into them by itself.

FREE -> LENT by `lend`, and LENT -> RESIDENT by `serve` where the policy keeps what the device has
brought, else LENT -> FREE by `take_back`. A layer-step that the host takes part in goes on as ever.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from compute.policies import contract
from compute.policies.base import AdmissionPolicy
from compute.residency import Residency


@dataclass(frozen=True, slots=True)
class Served:
    """LENT slots after a step: what the policy did not keep, and those that were vacated for more."""

    returned: list[int]
    vacated: list[int]


@dataclass(slots=True)
class LendingResidency(Residency):
    _lent: set[int] = field(init=False, default_factory=set)

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_lent(self) -> int:
        return len(self._lent)

    def lend(self) -> int:
        """FREE -> LENT; there must be a free slot."""
        slot = self._free.pop()
        self._lent.add(slot)
        return slot

    def take_back(self, slot: int) -> None:
        """LENT -> FREE: nobody reads or writes the slot any more."""
        self._lent.remove(slot)
        self._free.append(slot)

    def serve(
        self,
        layer: int,
        keys: Sequence[int],
        missed: Collection[int],
        landed: Mapping[int, int],
        num_vacant: int,
        clock: int,
    ) -> Served:
        """A layer-step that the device has gone through by itself used `keys` (distinct, ascending).

        `missed` of them were in no slot when it looked, of these it brought `landed`, key -> LENT slot.
        Then experts leave until `num_vacant` slots are LENT and empty, or FREE. Counts as `access` does.
        """
        if self._on_step is not None:
            self._on_step(layer, keys, None)
        # Whoever is there by now was on its way when the device looked.
        num_late = sum(key in self._coming or key in self._resident for key in missed)
        self.counters.hits += len(keys) - len(missed)
        self.counters.late += num_late
        self.counters.misses += len(missed) - num_late
        if self._guesses:
            self.counters.prefetch_used += self._guesses.leave_all(keys)
        held = set(keys)
        kept = self._kept(landed, held)
        for key in kept:
            self._adopt(key, landed[key])
        returned = [slot for key, slot in landed.items() if key not in kept]
        num_lacking = num_vacant - (len(self._lent) + len(self._free))
        vacated = self._vacate_for_lending(num_lacking, held, clock)
        self.policy.on_access(layer, keys, None)
        return Served(returned, vacated)

    def _kept(self, landed: Mapping[int, int], held: set[int]) -> set[int]:
        """Those of `landed` that become residents: not whoever is one, or on its way, by another slot."""
        newcomers = [key for key in landed if key not in self._resident and key not in self._coming]
        if not self._may_pass or len(newcomers) <= len(self._free):
            return set(newcomers)
        policy = cast(AdmissionPolicy, self.policy)
        return set(contract.choose_admitted(policy, newcomers, len(self._free), self._unmovable(held)))

    def _adopt(self, key: int, slot: int) -> None:
        """LENT -> RESIDENT."""
        self._lent.remove(slot)
        self._key_in[slot] = key
        self._resident[key] = slot
        self.table.enter(key, slot)
        self.policy.on_insert(key, False)

    def _vacate_for_lending(self, count: int, held: set[int], clock: int) -> list[int]:
        """RESIDENT -> LENT, up to `count` slots; guesses that are still ahead stay."""
        if count <= 0:
            return []
        evicted = self._make_room(len(self._free) + count, held, clock, spare_live=True)
        slots = [slot for _, slot in evicted]
        self._free = [slot for slot in self._free if slot not in slots]
        self._lent.update(slots)
        return slots
