"""Follower: the policy beside the device. It learns what the device did from the mailbox, after the fact.

For each layer-step that was launched, in order: who was used, who was missing, who landed in an open
slot. The policy keeps or returns what landed and says who leaves for the next; the predictor's guesses
are fetched into spare slots. The device waits for none of it, and no value depends on it.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from compute.beside.lending import LendingResidency
from compute.beside.mailbox import Mailbox, Posted
from compute.beside.open_slots import OpenSlots
from compute.beside.table import DeviceSlotTable
from compute.beside.words import IN_PLACE, LANDED, MAX_EXPERTS, PAYLOAD_MASK, REPEATED, UNKNOWN
from compute.look_ahead import LookAhead
from compute.patience import TIMEOUT_HINT
from compute.rows import no_such_expert
from compute.supply import Supply

#: Between two looks into the mailbox.
_NAP_S = 20e-6


@dataclass(frozen=True, slots=True)
class Launched:
    """A layer-step on the device. `asked`: (target, ranks of a token) of the gates that were asked in it."""

    layer: int
    clock: int
    num_tokens: int
    top_k: int
    asked: tuple[tuple[int, int], ...] = ()

    @property
    def num_rows(self) -> int:
        return self.num_tokens * self.top_k

    @property
    def num_predicted(self) -> int:
        return self.num_tokens * sum(num_named for _, num_named in self.asked)


@dataclass(frozen=True, slots=True)
class BegunPass:
    """A forward pass begins with the step behind it."""

    num_tokens: int
    is_new_sequence: bool


class Follower:
    """`told(layer, num_tokens)` after each step. Called from the compute thread.

    `num_landed`, `num_in_place`: experts that the device has brought, or read, out of their frames.
    `clock`: the layer-step that was followed last.
    """

    def __init__(
        self,
        *,
        residency: LendingResidency,
        table: DeviceSlotTable,
        mailbox: Mailbox,
        open_slots: OpenSlots,
        supply: Supply,
        look_ahead: LookAhead | None,
        begin_pass: Callable[[int, bool], None],
        told: Callable[[int, int], None],
        num_experts: int,
        timeout_s: float,
    ) -> None:
        self.num_landed = 0
        self.num_in_place = 0
        self.clock = -1
        self._residency = residency
        self._table = table
        self._mailbox = mailbox
        self._open_slots = open_slots
        self._supply = supply
        self._ahead = look_ahead
        self._begin_pass = begin_pass
        self._told = told
        self._num_experts = num_experts
        self._timeout_s = timeout_s
        self._queue: deque[Launched | BegunPass] = deque()
        self._launched_last = -1
        self._epoch_before = -1

    # --- what the compute thread has done -------------------------------------------------------

    def begun(self, begun: BegunPass) -> None:
        self._queue.append(begun)

    def launched(self, step: Launched) -> None:
        """Steps follow each other, and the mailbox must have a free row: see `make_room`."""
        assert step.clock > self._launched_last, f"layer {step.layer} was launched twice in one pass"
        assert self._has_room(step.clock), "a row would be overwritten unread"
        self._launched_last = step.clock
        self._queue.append(step)

    def is_over(self, clock: int) -> bool:
        """Whether layer-step `clock`, or one behind it, was launched."""
        return clock <= self._launched_last

    # --- following ------------------------------------------------------------------------------

    def follow(self) -> None:
        """Whatever has been posted by now. Never waits. Raises ModelError for an index that is no expert."""
        while self._queue and self._follow_one():
            pass

    def make_room(self, clock: int) -> None:
        """Follow until all steps up to `clock` may be launched. Raises RuntimeError after the timeout."""
        self._until(lambda: self._has_room(clock))

    def _has_room(self, clock: int) -> bool:
        """A row is good for every `num_cells`-th step, whether those between were launched or not."""
        oldest = next((step.clock for step in self._queue if isinstance(step, Launched)), clock)
        return clock - oldest < self._mailbox.num_cells

    def catch_up(self) -> None:
        """Follow all that was launched. Raises RuntimeError after the timeout."""
        self._until(lambda: not self._queue)

    def follow_to_end(self) -> None:
        """Follow until the device has posted the last step launched; what is left then waits for its turn."""
        last = self._queue[-1] if self._queue else None
        if isinstance(last, Launched):
            self._until(lambda: not self._queue or self._posted(last) is not None)

    def _until(self, is_reached: Callable[[], bool]) -> None:
        until_s = time.monotonic() + self._timeout_s
        while not is_reached():
            if self._queue and self._follow_one():
                until_s = time.monotonic() + self._timeout_s
            elif time.monotonic() > until_s:
                raise RuntimeError(
                    f"the device has not run a layer-step within {self._timeout_s:g} s {TIMEOUT_HINT}"
                )
            else:
                time.sleep(_NAP_S)

    def _follow_one(self) -> bool:
        """The next step or pass, if it is there."""
        following = self._queue[0]
        if isinstance(following, BegunPass):
            self._queue.popleft()
            self._begin_pass(following.num_tokens, following.is_new_sequence)
            return True
        posted = self._posted(following)
        self._supply.settle_arrivals(following.clock)
        if posted is None:
            return False
        with self._supply.agreeing():
            self._queue.popleft()
            self.clock = following.clock
            self._note(following, posted)
        self._told(following.layer, following.num_tokens)
        self._check(posted)
        return True

    def _posted(self, step: Launched) -> Posted | None:
        return self._mailbox.read(step.clock, step.num_rows, step.num_predicted)

    def _note(self, step: Launched, posted: Posted) -> None:
        """One layer-step, as residency, policy and predictor see it."""
        self._open_slots.cool(self._epoch_before)
        self._epoch_before = self._table.epoch - ((self._table.epoch - posted.epoch) & PAYLOAD_MASK)
        keys, missed, landed = self._sort(step, posted)
        if not keys:
            return  # no index was an expert's
        num_wanted = self._open_slots.num_wanted
        served = self._residency.serve(step.layer, keys, missed, landed, num_wanted, step.clock)
        self._open_slots.put([*served.returned, *served.vacated])
        self._supply.cancel(served.overtaken, step.clock)
        self._supply.fetch(served.admitted, step.clock)
        self._look_ahead(step, posted, keys)

    def _sort(self, step: Launched, posted: Posted) -> tuple[list[int], list[int], dict[int, int]]:
        """(keys, ascending; those that were missing; slots of those that landed)."""
        first_key = step.layer * self._num_experts
        keys, missed, landed = [], [], {}
        for expert, found in posted.found:
            key = first_key + expert
            if found not in (REPEATED, UNKNOWN):
                keys.append(key)
            if found == LANDED:
                landed[key] = self._open_slots.take()
                self.num_landed += 1
            elif found == IN_PLACE:
                self.num_in_place += 1
            if found in (LANDED, IN_PLACE):
                missed.append(key)
        return sorted(keys), missed, landed

    def _check(self, posted: Posted) -> None:
        for expert, found in posted.found:
            if found == UNKNOWN:
                is_negative = expert >= MAX_EXPERTS // 2
                raise no_such_expert(expert - MAX_EXPERTS * is_negative, self._num_experts)

    def _look_ahead(self, step: Launched, posted: Posted, keys: list[int]) -> None:
        if self._ahead is None:
            return
        if self._ahead.gate:
            self._ahead.gate.hear(step.layer, self._answers(step, posted))
        plan = self._ahead.plan(step.layer, keys, step.clock)
        if plan:
            self._supply.guess(plan, keys, step.clock, evicts=False)

    def _answers(self, step: Launched, posted: Posted) -> list[tuple[int, np.ndarray]]:
        """(target, ranks [T, n]) of each gate that was asked: the host asks none."""
        if not step.asked:
            return []
        ends = np.cumsum([step.num_tokens * num_named for _, num_named in step.asked])
        parts = np.split(posted.predicted.astype(np.int16), ends[:-1])
        return [
            (target, part.reshape(step.num_tokens, -1))
            for (target, _), part in zip(step.asked, parts, strict=True)
        ]
