"""The tickets of one client: which are open, what they ask for, and whose lease they hold.

A ticket's life: free place -> ASKED -> (HELD, when it ended with a frame) -> free place. Its
place in the arena's tables is its low bits; above them counts how often the place was used, so
that a word left by an earlier ticket is never taken for this one's.
Pure bookkeeping: no arena, no messages, no clock.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from protocol.arena import TICKET_BITS
from protocol.messages import Request

LeaseT = TypeVar("LeaseT")


@dataclass(slots=True)
class Asked:
    """A ticket on its way: what is asked, and what was said about it since.

    `was_cancelled` stays when a promotion takes a cancellation back: the loader may have obeyed.
    """

    request: Request
    is_demand: bool
    is_cancelled: bool = False
    was_cancelled: bool = False


class TicketBook(Generic[LeaseT]):
    """At most `quota` tickets are open (asked or held) at once; `num_tickets` is a power of two.

    Every ticket is above 0 and below 2**24.
    """

    def __init__(self, num_tickets: int, quota: int) -> None:
        if not 0 < quota <= num_tickets:
            raise ValueError(f"a quota of {quota} frames; 1 to {num_tickets} are allowed by this arena")
        self.quota = quota
        self.asked: dict[int, Asked] = {}
        self.held: dict[int, LeaseT] = {}
        self._num_tickets = num_tickets
        self._last_ticket = (1 << TICKET_BITS) - num_tickets
        # The first ticket of each place carries sequence number 1; a freed place goes to the end,
        # so that numbers come back as late as possible.
        self._next = deque(range(num_tickets, 2 * num_tickets))

    @property
    def num_open(self) -> int:
        return len(self.asked) + len(self.held)

    @property
    def room(self) -> int:
        """How many more tickets may be asked."""
        return self.quota - self.num_open

    def place(self, ticket: int) -> int:
        """The ticket's place in the arena's lease and completion tables."""
        return ticket & (self._num_tickets - 1)

    def ask(self, key: int, deadline: int, *, is_demand: bool) -> Request:
        """Open a fresh ticket for `key`. The caller keeps within `room`."""
        assert self.room > 0, f"all {self.quota} tickets of the quota are open"
        request = Request(self._next.popleft(), key, deadline)
        self.asked[request.ticket] = Asked(request, is_demand)
        return request

    def promote(self, tickets: Iterable[int]) -> None:
        """These are needed now."""
        for ticket in tickets:
            asked = self.asked[ticket]
            asked.is_demand, asked.is_cancelled = True, False

    def cancel(self, tickets: Iterable[int]) -> None:
        """These are not needed any more."""
        for ticket in tickets:
            asked = self.asked[ticket]
            asked.is_cancelled = asked.was_cancelled = True

    def hold(self, ticket: int, lease: LeaseT) -> None:
        """The ticket ended with a frame, which is leased from now on."""
        del self.asked[ticket]
        self.held[ticket] = lease

    def drop(self, ticket: int) -> Asked:
        """The ticket ended without a frame."""
        asked = self.asked.pop(ticket)
        self._free(ticket)
        return asked

    def release(self, ticket: int) -> LeaseT:
        """The lease goes back."""
        lease = self.held.pop(ticket)
        self._free(ticket)
        return lease

    def _free(self, ticket: int) -> None:
        successor = ticket + self._num_tickets
        is_last = ticket >= self._last_ticket
        self._next.append(self.place(ticket) + self._num_tickets if is_last else successor)
