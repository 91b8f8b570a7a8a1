"""The queue: which expert is to be read next. Pure; knows no clock, no frames and no bytes.

Demand before prefetch. Within a class the clients take turns, because deadlines of different
clients are on different clocks; within a client the earliest deadline goes first, then the order
of asking. Tickets on one key are coalesced: they leave together, when the first of them is due.
"""

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple


class TicketId(NamedTuple):
    """A ticket and the number of the client that chose it."""

    client: int
    ticket: int


@dataclass(slots=True)
class _Entry:
    key: int
    deadline: int
    is_demand: bool
    order: int


@dataclass(slots=True)
class _Class:
    """Tickets of one class: a sorted lane per client, and whose turn it is."""

    lanes: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)
    turns: deque[int] = field(default_factory=deque)

    def add(self, client: int, place: tuple[int, int, int]) -> None:
        lane = self.lanes.get(client)
        if lane is None:
            lane = self.lanes[client] = []
            self.turns.append(client)
        insort(lane, place)

    def remove(self, client: int, place: tuple[int, int, int]) -> None:
        lane = self.lanes[client]
        del lane[bisect_left(lane, place)]
        if not lane:
            del self.lanes[client]
            self.turns.remove(client)

    def first(self) -> TicketId | None:
        """The most urgent ticket of the client whose turn it is."""
        if not self.turns:
            return None
        client = self.turns[0]
        return TicketId(client, self.lanes[client][0][2])

    def end_turn(self, client: int) -> None:
        """`client` has been served: it goes to the end, if it still waits."""
        if client in self.lanes:
            self.turns.remove(client)
            self.turns.append(client)


class FetchQueue:
    """Tickets that wait for their expert to be read."""

    def __init__(self) -> None:
        self._entries: dict[TicketId, _Entry] = {}
        self._tickets_of: dict[int, list[TicketId]] = {}
        self._demand = _Class()
        self._prefetch = _Class()
        self._asked = 0

    def __len__(self) -> int:
        """Tickets waiting."""
        return len(self._entries)

    @property
    def num_keys(self) -> int:
        """Distinct experts waiting."""
        return len(self._tickets_of)

    def __contains__(self, ticket: TicketId) -> bool:
        return ticket in self._entries

    def awaits(self, key: int) -> bool:
        """Some ticket waits for `key`."""
        return key in self._tickets_of

    def add(self, ticket: TicketId, key: int, deadline: int, is_demand: bool) -> bool:
        """Wait for `key`. Returns whether others wait for it already. A ticket waits only once."""
        assert ticket not in self._entries, ticket
        self._asked += 1
        entry = self._entries[ticket] = _Entry(key, deadline, is_demand, self._asked)
        self._class(entry).add(ticket.client, _place(ticket, entry))
        others = self._tickets_of.setdefault(key, [])
        others.append(ticket)
        return len(others) > 1

    def promote(self, ticket: TicketId) -> bool:
        """Turn a prefetch into a demand, behind the demands of equal deadline. False: it waits no longer."""
        entry = self._entries.get(ticket)
        if entry is None:
            return False
        if not entry.is_demand:
            self._prefetch.remove(ticket.client, _place(ticket, entry))
            self._asked += 1
            entry.is_demand, entry.order = True, self._asked
            self._demand.add(ticket.client, _place(ticket, entry))
        return True

    def cancel(self, ticket: TicketId) -> bool:
        """Wait no longer. False: it did not wait."""
        entry = self._entries.get(ticket)
        if entry is None:
            return False
        self._forget(ticket)
        others = self._tickets_of[entry.key]
        others.remove(ticket)
        if not others:
            del self._tickets_of[entry.key]
        return True

    def take(self) -> tuple[int, list[TicketId]] | None:
        """The most urgent key, with every ticket that waits for it, in the order of asking."""
        first = self._demand.first() or self._prefetch.first()
        if first is None:
            return None
        urgent = self._class(self._entries[first])
        key = self._entries[first].key
        tickets = self._tickets_of.pop(key)
        for ticket in tickets:
            self._forget(ticket)
        urgent.end_turn(first.client)
        return key, tickets

    def _forget(self, ticket: TicketId) -> None:
        entry = self._entries.pop(ticket)
        self._class(entry).remove(ticket.client, _place(ticket, entry))

    def _class(self, entry: _Entry) -> _Class:
        return self._demand if entry.is_demand else self._prefetch


def _place(ticket: TicketId, entry: _Entry) -> tuple[int, int, int]:
    return entry.deadline, entry.order, ticket.ticket
