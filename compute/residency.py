"""Residency: which expert is in which slot, and in which state. The only owner of that question.

Pure bookkeeping over keys and slot numbers: it knows no bytes, no device, no clock and no
loader. The live runtime and the replay share it, so their counters agree.

A slot's life: FREE -> COMING (a fetch is on its way) -> RESIDENT -> FREE, by `access` or
`speculate`, `landed` or `dropped`, and eviction. A guess (an expert fetched ahead of need) is on
probation until its first use: its deadline gone by, it is the first to leave. A guess's deadline
has gone by as soon as `access` has looked up that layer-step.
"""

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum
from typing import cast

from compute.arrays import IntArray
from compute.counters import ResidencyCounters
from compute.policies import contract
from compute.policies.base import AdmissionPolicy, EvictionPolicy, FloatArray
from compute.probation import Probation
from compute.slot_table import SlotTable

_NOBODY = -1


class SlotState(Enum):
    FREE = "free"
    COMING = "coming"
    RESIDENT = "resident"


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
class Residency:
    """The slot table. `num_slots` is the cache's capacity, `top_k` bounds how much may be speculative."""

    num_slots: int
    top_k: int
    policy: EvictionPolicy
    counters: ResidencyCounters = field(default_factory=ResidencyCounters)
    #: the same as `_resident`, for many keys at once
    table: SlotTable = field(default_factory=SlotTable)
    _may_pass: bool = field(init=False)
    _on_step: Callable[[int, Sequence[int], FloatArray | None], None] | None = field(init=False)
    _free: list[int] = field(init=False)
    #: slot -> key
    _key_in: list[int] = field(init=False)
    #: key -> slot; an expert is in one of the two, or in none
    _resident: dict[int, int] = field(init=False, default_factory=dict)
    _coming: dict[int, int] = field(init=False, default_factory=dict)
    _guesses: Probation = field(init=False, default_factory=Probation)
    #: slots whose fetch is on its way and cancelled
    _cancelled: set[int] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        if self.num_slots < self.top_k:
            raise ValueError(
                f"{self.num_slots} slots, but a token uses {self.top_k} experts at once: "
                f"at least {self.top_k} slots are needed"
            )
        self._may_pass = hasattr(self.policy, "choose_admitted")
        self._on_step = getattr(self.policy, "on_step", None)
        self._free = list(range(self.num_slots - 1, -1, -1))
        self._key_in = [_NOBODY] * self.num_slots

    # --- asking ------------------------------------------------------------------------------

    def slot_of(self, key: int) -> int | None:
        """The slot that holds or awaits `key`."""
        slot = self._resident.get(key)
        return self._coming.get(key) if slot is None else slot

    def slots_of(self, keys: IntArray) -> IntArray | None:
        """The slots that hold `keys`, in their order; None unless all are resident."""
        return self.table.find(keys)

    def key_in(self, index: int) -> int | None:
        """The expert that a slot holds or awaits."""
        key = self._key_in[index]
        return None if key == _NOBODY else key

    def state_of(self, index: int) -> SlotState:
        key = self._key_in[index]
        if key == _NOBODY:
            return SlotState.FREE
        return SlotState.COMING if key in self._coming else SlotState.RESIDENT

    def is_resident(self, key: int) -> bool:
        return key in self._resident

    def is_on_probation(self, key: int) -> bool:
        """Whether `key` is a guess that nobody has used yet, there or on its way."""
        return key in self._guesses

    def is_awaited(self, index: int) -> bool:
        """Whether a layer-step waits for what is on its way to the slot: no guess, or no longer."""
        key = self._key_in[index]
        return key in self._coming and key not in self._guesses

    def resident_keys(self) -> set[int]:
        return set(self._resident)

    @property
    def num_used(self) -> int:
        """Slots that hold or await an expert."""
        return self.num_slots - len(self._free)

    @property
    def num_coming(self) -> int:
        """Slots whose expert is on its way."""
        return len(self._coming)

    @property
    def num_guesses_coming(self) -> int:
        """Guesses on their way that nobody has cancelled."""
        return sum(key in self._guesses and slot not in self._cancelled for key, slot in self._coming.items())

    def speculative_room(self, clock: int) -> int:
        """How many more experts may be prefetched.

        Guesses on their way and unused ones stay within slots - top_k; those whose deadline has
        gone by do not count, as they leave for the next.
        """
        live = len(self._guesses) - len(self._expired(clock))
        return max(self.num_slots - self.top_k - live, 0)

    def wasted_now(self, clock: int) -> int:
        """Guesses that landed in vain: evicted unused, or still there although their time is over."""
        return self.counters.prefetch_wasted + len(self._expired(clock))

    # --- a layer-step ------------------------------------------------------------------------

    def access(self, layer: int, keys: Sequence[int], clock: int, probs: FloatArray | None = None) -> Access:
        """Look up all of a layer-step's `keys` (distinct, ascending), then choose victims outside them.

        A step that needs more experts than there are slots evicts nobody: residents hit, free
        slots are filled in order, the rest pass through without admission. `probs` is for the
        policy. Raises ValueError when the policy names a victim that it must not.
        """
        if self._on_step is not None:
            self._on_step(layer, keys, probs)
        resident = self._resident
        hits: list[tuple[int, int]] = []
        absent: list[int] = []
        for key in keys:
            slot = resident.get(key)
            if slot is None:
                absent.append(key)
            else:
                hits.append((key, slot))
        self.counters.hits += len(hits)
        if self._guesses:
            self.counters.prefetch_used += self._guesses.leave_all(keys)
        access = self._admit(hits, absent, keys, clock) if absent else Access(hits, [], [], [], [])
        self.policy.on_access(layer, keys, probs)
        return access

    def note_hits(self, layer: int, keys: Sequence[int], probs: FloatArray | None = None) -> None:
        """`access` for a step whose experts are all resident, as `slots_of` has found."""
        if self._on_step is not None:
            self._on_step(layer, keys, probs)
        self.counters.hits += len(keys)
        if self._guesses:
            self.counters.prefetch_used += self._guesses.leave_all(keys)
        self.policy.on_access(layer, keys, probs)

    def cancel_overdue(self, clock: int) -> list[int]:
        """Slots of guesses still on their way although layer-step `clock` has shown them wrong or too late.

        Each is named once; whoever asks must cancel its fetch.
        """
        if not self._guesses:
            return []
        coming, cancelled = self._coming, self._cancelled
        slots = [coming[key] for key in self._guesses.gone_by(clock) if key in coming]
        overdue = [slot for slot in slots if slot not in cancelled]
        cancelled.update(overdue)
        return overdue

    def speculate(
        self, wanted: Iterable[tuple[int, int]], held: Set[int], clock: int, *, evicts: bool = True
    ) -> Speculation:
        """Give slots to the (key, deadline) pairs of `wanted` that have none, most urgent first.

        A guess that is already there, or on its way, gets the later deadline. Nobody in `held`
        leaves for a guess, nor does a guess that is still ahead of its deadline; nobody at all
        unless it `evicts`.
        """
        fresh = {key: deadline for key, deadline in wanted if not self._renew(key, deadline)}
        if not fresh:
            return Speculation([], [])
        newcomers = list(fresh)[: self.speculative_room(clock)]
        most = self.num_slots - self.top_k
        evicted: list[tuple[int, int]] = []
        if evicts:
            excess = max(len(self._guesses) + len(newcomers) - most, 0)
            evicted = self._evict(self._expired(clock, held)[:excess])
        newcomers = newcomers[: max(most - len(self._guesses), 0)]
        if evicts:
            evicted += self._make_room(len(newcomers), held, clock, spare_live=True)
        coming = []
        for key in newcomers[: len(self._free)]:
            self._guesses.enter(key, fresh[key])
            coming.append((key, self._occupy(key, is_guess=True)))
        self.counters.prefetch_issued += len(coming)
        return Speculation(coming, evicted)

    # --- what the transport reports ----------------------------------------------------------

    def landed(self, index: int) -> None:
        """The bytes of the slot's expert are there."""
        key = self._key_in[index]
        assert key in self._coming, (index, key)
        slot = self._resident[key] = self._coming.pop(key)
        self.table.enter(key, slot)
        if self._cancelled:
            self._cancelled.discard(index)

    def dropped(self, index: int) -> int:
        """A cancelled guess ended without bytes: its slot is free again. Returns its key."""
        key = self._key_in[index]
        assert key in self._coming and key in self._guesses, (index, key)
        del self._coming[key]
        self._guesses.leave(key)
        self._cancelled.discard(index)
        self.counters.prefetch_dropped += 1
        self._vacate(key, index)
        return key

    def ordered_again(self, index: int) -> int:
        """The fetch of an awaited expert ended without bytes, and its slot is asked for again.

        It had been cancelled before the layer-step wanted it, so it was a miss after all.
        Returns its key.
        """
        assert self.is_awaited(index), (index, self._key_in[index])
        if index in self._cancelled:
            self._cancelled.discard(index)
            self.counters.late -= 1
            self.counters.misses += 1
            self.counters.prefetch_used -= 1
            self.counters.prefetch_dropped += 1
        return self._key_in[index]

    # --- edges -------------------------------------------------------------------------------

    def _admit(
        self, hits: list[tuple[int, int]], absent: list[int], keys: Sequence[int], clock: int
    ) -> Access:
        """Sort `absent` into late ones and misses, and give the misses slots as far as there are any."""
        late: list[tuple[int, int]] = []
        missing = absent
        if coming := self._coming:
            late = [(key, coming[key]) for key in absent if key in coming]
            missing = [key for key in absent if key not in coming]
        self.counters.late += len(late)
        self.counters.misses += len(missing)
        evicted: list[tuple[int, int]] = []
        newcomers = missing
        if missing and len(keys) <= self.num_slots:
            held = set(keys)
            newcomers = self._newcomers(missing, held)
            evicted = self._make_room(len(newcomers), held, clock, spare_live=False)
        newcomers = newcomers[: len(self._free)]
        admitted = [(key, self._occupy(key, is_guess=False)) for key in newcomers]
        entered = set(newcomers)
        passing = [key for key in missing if key not in entered]
        return Access(hits, late, admitted, passing, evicted)

    def _newcomers(self, missing: list[int], held: Set[int]) -> list[int]:
        """Those of `missing` that shall get a slot; where nobody has to leave for them, all."""
        num_free = len(self._free)
        if not self._may_pass or len(missing) <= num_free:
            return missing
        policy = cast(AdmissionPolicy, self.policy)
        return contract.choose_admitted(policy, missing, num_free, self._unmovable(held))

    def _renew(self, key: int, deadline: int) -> bool:
        """Whether `key` has a slot; a guess that has one is wanted for `deadline` now."""
        if key not in self._resident and key not in self._coming:
            return False
        if self._coming.get(key) not in self._cancelled:
            self._guesses.renew(key, deadline)
        return True

    def _occupy(self, key: int, is_guess: bool) -> int:
        slot = self._free.pop()
        self._coming[key] = slot
        self._key_in[slot] = key
        self.policy.on_insert(key, is_guess)
        return slot

    def _vacate(self, key: int, index: int) -> None:
        self._key_in[index] = _NOBODY
        self._free.append(index)
        self.policy.on_evict(key)

    def _evict(self, keys: list[int]) -> list[tuple[int, int]]:
        evicted = []
        for key in keys:
            slot = self._resident.pop(key)
            self.table.leave(key)
            self._vacate(key, slot)
            evicted.append((key, slot))
        if self._guesses:
            self.counters.prefetch_wasted += self._guesses.leave_all(keys)
        self.counters.evictions += len(evicted)
        return evicted

    def _make_room(self, count: int, held: Set[int], clock: int, spare_live: bool) -> list[tuple[int, int]]:
        """Evict until `count` slots are free, or nobody may leave.

        Order: guesses whose deadline has gone by, the policy's victims, and (unless `spare_live`)
        guesses still ahead, the farthest first.
        """
        evicted: list[tuple[int, int]] = []
        lacking = count - len(self._free)
        if lacking > 0 and self._guesses:
            evicted = self._evict(self._expired(clock, held)[:lacking])
            lacking -= len(evicted)
        if lacking > 0:
            victims = contract.choose_victims(
                self.policy, lacking, self._unmovable(held), self._resident.keys()
            )
            evicted += self._evict(victims)
            lacking -= len(victims)
        if lacking > 0 and not spare_live:
            guesses = [key for key in self._guesses.farthest_first() if key in self._resident]
            evicted += self._evict([key for key in guesses if key not in held][:lacking])
        return evicted

    def _unmovable(self, held: Set[int]) -> Set[int]:
        """`held`, what is on its way, and guesses: residency itself decides when those leave."""
        if self._coming or self._guesses:
            return {*held, *self._coming, *self._guesses}
        return held

    def _expired(self, clock: int, held: Set[int] = frozenset()) -> list[int]:
        """Guesses there but unused although their deadline has gone by, in the order they were made."""
        if not self._guesses:
            return []
        resident = self._resident
        return [key for key in self._guesses.gone_by(clock) if key in resident and key not in held]
