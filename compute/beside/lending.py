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

_NOBODY = -1


@dataclass(frozen=True, slots=True)
class Served:
    """LENT slots after a step: what the policy did not keep, and those that were vacated for more.

    `overtaken`: slots whose fetch is to be cancelled, for the device was faster. `admitted`: (key, slot)
    to be fetched, of experts that were read in place although there are free slots.
    """

    returned: list[int]
    vacated: list[int]
    overtaken: list[int]
    admitted: list[tuple[int, int]]


@dataclass(slots=True)
class LendingResidency(Residency):
    _lent: set[int] = field(init=False, default_factory=set)
    #: slot -> key of fetches still on their way although the device has brought their expert
    _overtaken: dict[int, int] = field(init=False, default_factory=dict)

    @property
    def num_coming(self) -> int:
        return len(self._coming) + len(self._overtaken)

    @property
    def num_used(self) -> int:
        return self.num_slots - len(self._free) - len(self._lent) - len(self._overtaken)

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
        overtaken = [self._overtake(key, slot) for key, slot in landed.items() if key in self._coming]
        landed = {key: slot for key, slot in landed.items() if slot in self._lent}
        # Whoever is there by now was on its way when the device looked.
        num_late = sum(self.slot_of(key) is not None for key in missed) - len(overtaken)
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
        admitted = self._admit_in_place(missed, num_vacant)
        num_lacking = num_vacant - (len(self._lent) + len(self._free))
        vacated = self._vacate_for_lending(num_lacking, held, clock)
        self.policy.on_access(layer, keys, None)
        overtaken = [slot for slot in overtaken if slot not in self._cancelled]
        return Served(returned, vacated, overtaken, admitted)

    # --- what the transport reports ----------------------------------------------------------

    def is_awaited(self, index: int) -> bool:
        return index not in self._overtaken and Residency.is_awaited(self, index)

    def landed(self, index: int) -> None:
        if index in self._overtaken:
            self._end_overtaken(index)
        else:
            Residency.landed(self, index)

    def dropped(self, index: int) -> int:
        return self._end_overtaken(index) if index in self._overtaken else Residency.dropped(self, index)

    def _end_overtaken(self, index: int) -> int:
        """The slot of a fetch that nobody needs any more is FREE; no step has ever read it."""
        self._cancelled.discard(index)
        self._free.append(index)
        return self._overtaken.pop(index)

    # --- edges -------------------------------------------------------------------------------

    def _overtake(self, key: int, slot: int) -> int:
        """LENT -> RESIDENT, instead of the slot that awaits `key`, which is returned: a guess too late."""
        awaiting = self._coming.pop(key)
        self._key_in[awaiting] = _NOBODY
        self._overtaken[awaiting] = key
        self.counters.prefetch_dropped += self._guesses.leave(key)
        self._settle_in(key, slot)
        return awaiting

    def _kept(self, landed: Mapping[int, int], held: set[int]) -> set[int]:
        """Those of `landed` that become residents: not whoever is one already, in another slot."""
        newcomers = [key for key in landed if key not in self._resident]
        if not self._may_pass or len(newcomers) <= len(self._free):
            return set(newcomers)
        policy = cast(AdmissionPolicy, self.policy)
        return set(contract.choose_admitted(policy, newcomers, len(self._free), self._unmovable(held)))

    def _adopt(self, key: int, slot: int) -> None:
        """LENT -> RESIDENT."""
        self._settle_in(key, slot)
        self.policy.on_insert(key, False)

    def _admit_in_place(self, missed: Collection[int], num_vacant: int) -> list[tuple[int, int]]:
        """FREE -> COMING, for the missing that nobody has brought, as far as slots are free beyond need."""
        num_over = len(self._free) - num_vacant
        absent = [key for key in missed if self.slot_of(key) is None]
        return [(key, self._occupy(key, is_guess=False)) for key in absent[: max(num_over, 0)]]

    def _settle_in(self, key: int, slot: int) -> None:
        self._lent.remove(slot)
        self._key_in[slot] = key
        self._resident[key] = slot
        self.table.enter(key, slot)

    def _vacate_for_lending(self, count: int, held: set[int], clock: int) -> list[int]:
        """RESIDENT -> LENT, up to `count` slots; guesses that are still ahead stay."""
        if count <= 0:
            return []
        evicted = self._make_room(len(self._free) + count, held, clock, spare_live=True)
        slots = [slot for _, slot in evicted]
        self._free = [slot for slot in self._free if slot not in slots]
        self._lent.update(slots)
        return slots
