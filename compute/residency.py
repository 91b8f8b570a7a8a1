"""Residency: which expert is in which slot, and in which state. The only owner of that question.

Pure bookkeeping over keys and slot numbers: it knows no bytes, no device, no clock and no
loader. The live runtime and the replay share it, so their counters agree.

A slot's life: FREE -> COMING (a fetch is on its way) -> RESIDENT -> FREE, by `access` or
`speculate`, `landed` or `dropped`, and eviction. A speculative expert is on probation until its
first use: its deadline gone by, it is the first to leave.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from compute.policies.base import EvictionPolicy, FloatArray


class SlotState(Enum):
    FREE = "free"
    COMING = "coming"
    RESIDENT = "resident"


@dataclass(slots=True)
class Slot:
    """One row of the table. `deadline` is the layer-step a speculative expert is meant for, else -1."""

    index: int
    state: SlotState = SlotState.FREE
    key: int = -1
    deadline: int = -1

    @property
    def is_speculative(self) -> bool:
        return self.deadline >= 0


@dataclass(frozen=True, slots=True)
class Access:
    """What one layer-step found. Pairs are (key, slot); `passing` are keys served without admission."""

    hits: list[tuple[int, int]]
    late: list[tuple[int, int]]
    admitted: list[tuple[int, int]]
    passing: list[int]
    evicted: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Speculation:
    """Experts given a slot ahead of need, and who left for them. Pairs are (key, slot)."""

    coming: list[tuple[int, int]]
    evicted: list[tuple[int, int]]


@dataclass(slots=True)
class ResidencyCounters:
    """Counted per (forward pass, layer, distinct expert); lookups = hits + late + misses."""

    hits: int = 0
    late: int = 0
    misses: int = 0
    evictions: int = 0
    prefetch_issued: int = 0
    prefetch_used: int = 0
    prefetch_wasted: int = 0

    @property
    def lookups(self) -> int:
        return self.hits + self.late + self.misses

    @property
    def miss_recall(self) -> float | None:
        """Share of would-be misses that the prefetcher had asked for; None without prefetch."""
        would_be = self.prefetch_used + self.misses
        return self.prefetch_used / would_be if self.prefetch_issued and would_be else None


@dataclass(slots=True)
class Residency:
    """The slot table. `num_slots` is the cache's capacity, `top_k` bounds how much may be speculative."""

    num_slots: int
    top_k: int
    policy: EvictionPolicy
    counters: ResidencyCounters = field(default_factory=ResidencyCounters)
    _slots: list[Slot] = field(init=False)
    _free: list[int] = field(init=False)
    _slot_of: dict[int, Slot] = field(init=False, default_factory=dict)
    _probation: dict[int, Slot] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_slots < self.top_k:
            raise ValueError(
                f"{self.num_slots} slots, but a token uses {self.top_k} experts at once: "
                f"at least {self.top_k} slots are needed"
            )
        self._slots = [Slot(index) for index in range(self.num_slots)]
        self._free = list(range(self.num_slots - 1, -1, -1))

    # --- asking ------------------------------------------------------------------------------

    def slot_of(self, key: int) -> int | None:
        """The slot that holds or awaits `key`."""
        slot = self._slot_of.get(key)
        return slot.index if slot else None

    def is_resident(self, key: int) -> bool:
        slot = self._slot_of.get(key)
        return slot is not None and slot.state is SlotState.RESIDENT

    def resident_keys(self) -> set[int]:
        return {key for key, slot in self._slot_of.items() if slot.state is SlotState.RESIDENT}

    @property
    def speculative_room(self) -> int:
        """How many more experts may be prefetched: unused and in-flight ones stay within slots - top_k."""
        return max(self.num_slots - self.top_k - len(self._probation), 0)

    def overdue(self, clock: int) -> list[int]:
        """Slots of prefetches still on their way although their layer-step (`clock`) has gone by."""
        return [
            s.index for s in self._probation.values() if s.deadline < clock and s.state is SlotState.COMING
        ]

    # --- a layer-step ------------------------------------------------------------------------

    def access(self, layer: int, keys: Sequence[int], clock: int, probs: FloatArray | None = None) -> Access:
        """Look up all of a layer-step's `keys` (distinct, ascending), then choose victims outside them.

        A step that needs more experts than there are slots evicts nobody: residents hit, free
        slots are filled in order, the rest pass through without admission.
        """
        hits: list[tuple[int, int]] = []
        late: list[tuple[int, int]] = []
        missing: list[int] = []
        for key in keys:
            slot = self._slot_of.get(key)
            if slot is None:
                missing.append(key)
                continue
            (hits if slot.state is SlotState.RESIDENT else late).append((key, slot.index))
            if slot.is_speculative:
                self._first_use(slot)
        self.counters.hits += len(hits)
        self.counters.late += len(late)
        self.counters.misses += len(missing)
        evicted: list[tuple[int, int]] = []
        if missing:
            may_evict = len(keys) <= self.num_slots
            evicted = self._make_room(len(missing), set(keys), clock, may_evict, spare_live=False)
        num_admitted = min(len(missing), len(self._free))
        admitted = [(key, self._occupy(key, deadline=-1)) for key in missing[:num_admitted]]
        self.policy.on_access(layer, keys, probs)
        return Access(hits, late, admitted, missing[num_admitted:], evicted)

    def speculate(self, wanted: Iterable[tuple[int, int]], held: Container[int], clock: int) -> Speculation:
        """Give slots to the (key, deadline) pairs of `wanted` that have none, most urgent first.

        Nobody in `held` leaves for a guess, nor does a guess that is still ahead of its deadline.
        """
        fresh = [(key, deadline) for key, deadline in wanted if key not in self._slot_of]
        fresh = fresh[: self.speculative_room]
        if not fresh:
            return Speculation([], [])
        evicted = self._make_room(len(fresh), held, clock, may_evict=True, spare_live=True)
        coming = [(key, self._occupy(key, deadline)) for key, deadline in fresh[: len(self._free)]]
        self.counters.prefetch_issued += len(coming)
        return Speculation(coming, evicted)

    # --- what the transport reports ----------------------------------------------------------

    def landed(self, index: int) -> None:
        """The bytes of the slot's expert are there."""
        slot = self._slots[index]
        assert slot.state is SlotState.COMING, slot
        slot.state = SlotState.RESIDENT

    def dropped(self, index: int) -> int:
        """A cancelled fetch ended without bytes: the slot is free again. Returns its key."""
        slot = self._slots[index]
        assert slot.state is SlotState.COMING, slot
        key = slot.key
        self.policy.on_evict(key)
        self._vacate(slot)
        return key

    # --- edges -------------------------------------------------------------------------------

    def _first_use(self, slot: Slot) -> None:
        slot.deadline = -1
        del self._probation[slot.key]
        self.counters.prefetch_used += 1

    def _occupy(self, key: int, deadline: int) -> int:
        slot = self._slots[self._free.pop()]
        slot.state, slot.key, slot.deadline = SlotState.COMING, key, deadline
        self._slot_of[key] = slot
        if slot.is_speculative:
            self._probation[key] = slot
        self.policy.on_insert(key, slot.is_speculative)
        return slot.index

    def _vacate(self, slot: Slot) -> None:
        del self._slot_of[slot.key]
        self._probation.pop(slot.key, None)
        slot.state, slot.key, slot.deadline = SlotState.FREE, -1, -1
        self._free.append(slot.index)

    def _evict(self, key: int) -> tuple[int, int]:
        slot = self._slot_of[key]
        assert slot.state is SlotState.RESIDENT, slot
        if slot.is_speculative:
            self.counters.prefetch_wasted += 1
        self.counters.evictions += 1
        self.policy.on_evict(key)
        self._vacate(slot)
        return key, slot.index

    def _make_room(
        self, count: int, held: Container[int], clock: int, may_evict: bool, spare_live: bool
    ) -> list[tuple[int, int]]:
        """Evict until `count` slots are free, or nobody may leave.

        Order: guesses whose deadline has gone by, the policy's victims, and (unless `spare_live`)
        guesses still ahead, the farthest first.
        """
        evicted: list[tuple[int, int]] = []
        lacking = count - len(self._free)
        if lacking <= 0:
            return evicted
        guesses = [s for k, s in self._probation.items() if s.state is SlotState.RESIDENT and k not in held]
        evicted += [self._evict(s.key) for s in guesses if s.deadline < clock][:lacking]
        lacking = count - len(self._free)
        if lacking > 0 and may_evict:
            unmovable = _Unmovable(held, self._slot_of)
            evicted += [self._evict(key) for key in self.policy.choose_victims(lacking, unmovable)]
            lacking = count - len(self._free)
        if lacking > 0 and may_evict and not spare_live:
            ahead = sorted((s for s in guesses if s.deadline >= clock), key=lambda s: -s.deadline)
            evicted += [self._evict(s.key) for s in ahead[:lacking]]
        return evicted


@dataclass(frozen=True, slots=True)
class _Unmovable:
    """Keys a policy must not name: held by the caller, on their way, or on probation."""

    held: Container[int]
    slot_of: dict[int, Slot]

    def __contains__(self, key: object) -> bool:
        if key in self.held:
            return True
        assert isinstance(key, int)
        slot = self.slot_of[key]
        return slot.state is not SlotState.RESIDENT or slot.is_speculative
