"""Supply: gets the experts of a layer-step to where they can be computed.

Owns the agreement between the slot table (residency), the transit slots and the transport: what
one of them is told, the others are told too. Decides nothing but the order of things, and is
the only place where compute waits.
"""

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from compute.policies.base import FloatArray
from compute.prefetch import Plan
from compute.residency import Access, Residency
from compute.rows import Rows
from compute.transit import Transit
from compute.transports.base import Arrivals, Order, Transport
from protocol.errors import SidestageError
from protocol.timeline import Timeline

#: A deadline behind every other.
_SOME_TIME = 1 << 62


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a layer-step still needs. `awaited`: key by slot; `passing`: not asked for yet, last first."""

    clock: int
    awaited: dict[int, int]
    passing: list[int]


class Supply:
    """`stall_ns`: time spent waiting; `newly_landed`: landed slots, kept with a timeline only."""

    def __init__(self, residency: Residency, transport: Transport, timeline: Timeline | None) -> None:
        self.stall_ns = 0
        self.newly_landed: set[int] = set()
        self._residency = residency
        self._transport = transport
        self._transit = Transit(residency.num_slots, transport.num_transit)
        self._timeline = timeline
        # True while residency and transport do not agree yet: an interrupt then leaves them apart.
        self._is_torn = False

    @property
    def is_whole(self) -> bool:
        """Whether all who must agree do: no interrupt, and no error, fell between."""
        return not self._is_torn

    def check_whole(self) -> None:
        """Raise SidestageError unless it `is_whole`."""
        if not self.is_whole:
            raise SidestageError(
                "the last run of this model was interrupted in the middle of an order to its loader: "
                "close it and offload it again"
            )

    def settle_arrivals(self, clock: int) -> None:
        """A layer-step begins: note who has landed meanwhile."""
        if self._residency.num_coming or self._transit.is_busy:
            self._is_torn = True
            self._settle(self._transport.poll(), clock)
            self._transit.leave_all()
            self._is_torn = False

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """What an interrupt cuts in two within leaves residency and transport apart."""
        self._is_torn = True
        yield
        self._is_torn = False

    # --- orders -------------------------------------------------------------------------------

    def request(
        self, layer: int, rows: Rows, clock: int, probs: FloatArray | None
    ) -> tuple[Access, Delivery]:
        """Look up all experts of a layer-step at once, and ask for those that are not there."""
        self._is_torn = True
        access = self._residency.access(layer, rows.keys, clock, probs)
        delivery = self._ask(rows, access, clock)
        self._is_torn = False
        return access, delivery

    def hit(self, layer: int, keys: list[int], clock: int, probs: FloatArray | None) -> None:
        """`request` for a layer-step whose experts are all resident: nothing is needed."""
        self._is_torn = True
        self._residency.note_hits(layer, keys, probs)
        evicted, cancel = self._transit.take_left(), self._residency.cancel_overdue(clock)
        if evicted or cancel:
            self._transport.submit(Order(evicted, cancel), clock)
        self._is_torn = False

    def cancel(self, slots: list[int], clock: int) -> None:
        """What is on its way to `slots` need not come, nor a guess that step `clock` has shown wrong."""
        if cancel := slots + self._residency.cancel_overdue(clock):
            self._transport.submit(Order(cancel=cancel), clock)

    def fetch(self, admitted: list[tuple[int, int]], clock: int) -> None:
        """Get experts, (key, slot), that step `clock` has used: for some later one, behind every guess."""
        if admitted:
            self._transport.submit(Order(prefetch=[(*pair, _SOME_TIME) for pair in admitted]), clock)

    def guess(self, plan: Plan, keys: list[int], clock: int, *, evicts: bool = True) -> None:
        """Ask for what is planned ahead of need, while the experts of this step's `keys` stay."""
        self._is_torn = True
        held = plan.held.union(keys)
        speculation = self._residency.speculate(plan.wanted, held, clock, evicts=evicts)
        if speculation.coming:
            deadline_of = dict(plan.wanted)
            guesses = [(key, slot, deadline_of[key]) for key, slot in speculation.coming]
            self._transport.submit(Order(evicted=speculation.evicted, prefetch=guesses), clock)
        self._is_torn = False

    def deliver(self, delivery: Delivery) -> Iterator[list[tuple[int, int]]]:
        """The (key, slot) pairs of experts that landed together; they stay until the next are asked for.

        A transit slot is given to the next passing expert as soon as its own has been used.
        """
        awaited, transit = delivery.awaited, self._transit
        while awaited or delivery.passing:
            if delivery.passing and transit.has_room:
                self._pass_on(delivery)
            if there := self._arrived(self._wait(awaited or transit.coming), delivery):
                yield there

    def collect(self, delivery: Delivery) -> list[tuple[int, int]]:
        """Those of `deliver` that have landed already, so that they can be computed with the hits."""
        return self._arrived(self._transport.poll(), delivery) if delivery.awaited else []

    def _arrived(self, arrivals: Arrivals, delivery: Delivery) -> list[tuple[int, int]]:
        """The (key, slot) pairs that the step has waited for."""
        landed = self._settle(arrivals, delivery.clock)
        there = [(delivery.awaited.pop(slot), slot) for slot in landed if slot in delivery.awaited]
        for slot in filter(self._transit.owns, landed):
            self._transit.leave(slot)
        return there

    def _ask(self, rows: Rows, access: Access, clock: int) -> Delivery:
        """The step's first order: who left, what is overdue, what is needed now."""
        cancel = self._residency.cancel_overdue(clock)
        evicted = self._transit.take_left() + access.evicted
        passing = rows.largest_first(access.passing)[::-1]
        slot_of = dict(access.admitted)
        demand = [(key, slot_of[key]) for key in rows.largest_first(list(slot_of))]
        demand += self._enter_transit(passing)
        if evicted or cancel or access.late or demand:
            promote = [slot for _, slot in access.late]
            self._transport.submit(Order(evicted, cancel, promote, demand), clock)
        return Delivery(clock, {slot: key for key, slot in [*access.late, *demand]}, passing)

    def _pass_on(self, delivery: Delivery) -> None:
        """Ask for as many of the passing experts as there are free transit slots."""
        self._is_torn = True
        demand = self._enter_transit(delivery.passing)
        delivery.awaited.update((slot, key) for key, slot in demand)
        self._transport.submit(Order(evicted=self._transit.take_left(), demand=demand), delivery.clock)
        self._is_torn = False

    def _enter_transit(self, passing: list[int]) -> list[tuple[int, int]]:
        """(key, slot) of those that a transit slot was found for, taken off `passing`."""
        pairs = []
        while passing and self._transit.has_room:
            key = passing.pop()
            pairs.append((key, self._transit.enter(key)))
        return pairs

    # --- arrivals -----------------------------------------------------------------------------

    def _wait(self, slots: Collection[int]) -> Arrivals:
        """Stall until one of `slots` has ended."""
        started_ns = time.monotonic_ns()
        arrivals = self._transport.wait(slots)
        ended_ns = time.monotonic_ns()
        self.stall_ns += ended_ns - started_ns
        if self._timeline:
            self._timeline.span("stall", "experts", started_ns, ended_ns)
        return arrivals

    def _settle(self, arrivals: Arrivals, clock: int) -> list[int]:
        """Note who landed, and return them. What is awaited but was dropped is asked for again."""
        was_torn, self._is_torn = self._is_torn, True
        for slot in arrivals.landed:
            if self._transit.owns(slot):
                self._transit.arrive(slot)
            else:
                self._residency.landed(slot)
        if self._timeline:
            self.newly_landed.update(arrivals.landed)
        again = [pair for slot in arrivals.dropped if (pair := self._end_dropped(slot))]
        if again:
            self._transport.submit(Order(demand=again), clock)
        self._is_torn = was_torn
        return arrivals.landed

    def _end_dropped(self, slot: int) -> tuple[int, int] | None:
        """(key, slot) when somebody waits for what was on its way to the slot."""
        if self._transit.owns(slot):
            return self._transit.key_in(slot), slot
        if self._residency.is_awaited(slot):
            return self._residency.ordered_again(slot), slot
        self._residency.dropped(slot)
        return None
