"""The tickets' lives without the lock: what asking, promoting, cancelling and releasing do to them.

asked -> waiting (queue) -> filling -> leased -> released, or dropped from the first three. Owns the
queue, the fills under way and the outbox; moves no bytes, sends no message. Not thread-safe: the
ledger locks.
"""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

from loader.clients import Client, ClientTable
from loader.frames import FrameTable
from loader.outbox import Outbox
from loader.queue import FetchQueue, TicketId
from loader.waits import Waits
from protocol.arena import TICKET_MASK
from protocol.messages import Fault, Request


@dataclass(slots=True)
class Fill:
    """One expert on its way from the store into a frame, and the tickets that wait for it."""

    key: int
    frame: int
    tickets: list[TicketId]


@dataclass(slots=True)
class Counters:
    """Since this loader started."""

    fetched: int = 0
    host_hits: int = 0
    coalesced: int = 0
    cancelled: int = 0


class Tickets:
    """`num_keys`: experts of the store; `step`: the smallest ticket, one for each place of the arena."""

    def __init__(self, frames: FrameTable, clients: ClientTable, *, num_keys: int, step: int) -> None:
        self.queue = FetchQueue()
        self.outbox = Outbox()
        self.counters = Counters()
        self.waits = Waits()
        self._num_keys = num_keys
        self._step = step
        self._frames = frames
        self._clients = clients
        self._fills: dict[int, Fill] = {}
        self._to_wake: set[int] = set()

    def take_outbox(self) -> Outbox:
        """What there is to say since the last call."""
        outbox, self.outbox = self.outbox, Outbox()
        return outbox

    # --- fills ---------------------------------------------------------------------------------

    def begin_fill(self) -> Fill | None:
        """The most urgent expert and a frame for it, which there must be. None: nobody waits."""
        job = self.queue.take()
        if job is None:
            return None
        key, tickets = job
        fill = self._fills[key] = Fill(key, self._frames.begin_fill(key, tickets), tickets)
        return fill

    def finish(self, fill: Fill) -> None:
        """The bytes are there: whoever waits has the expert."""
        del self._fills[fill.key]
        self._frames.seal(fill.frame)
        now_ns = time.monotonic_ns()
        for ticket in fill.tickets:
            self.waits.end(ticket, now_ns)
            self._publish(self._clients[ticket.client], ticket)
        self.wake_clients()

    def fail(self, fill: Fill, text: str) -> None:
        """Each client that waits is told why it waits in vain."""
        self.abandon(fill)
        by_client: dict[int, list[int]] = {}
        for client, ticket in fill.tickets:
            by_client.setdefault(client, []).append(ticket)
        for client, tickets in by_client.items():
            self.complain(self._clients[client], "store", text, tickets)

    def abandon(self, fill: Fill) -> None:
        """The frame is free again; the tickets are nobody's until they are ended."""
        del self._fills[fill.key]
        for ticket in fill.tickets:
            self.waits.forget(ticket)
            self._frames.release(ticket)
        self._frames.abandon(fill.frame)

    # --- asking --------------------------------------------------------------------------------

    def ask(self, client: Client, requests: Iterable[Request], is_demand: bool) -> None:
        """Grant what may be granted; the rest is complained of, and ends in Dropped."""
        refused: dict[str, tuple[str, list[int]]] = {}
        again = []
        for request in requests:
            if client.tickets.get(self._frames.place(request.ticket)) == request.ticket:
                again.append(request.ticket)  # it is under way or leased, and ends as it would have
                continue
            problem = self._problem(client, request)
            if problem is None:
                self._grant(client, request, is_demand)
            else:
                kind, text = problem
                refused.setdefault(kind, (text, []))[1].append(request.ticket)
        for kind, (text, tickets) in refused.items():
            self.complain(client, kind, text, tickets)
        if again:
            text = f"{len(again)} tickets were asked again before they ended, the first is {again[0]}"
            self.outbox.faults.append((client.number, Fault("ticket", text, ())))

    def _problem(self, client: Client, request: Request) -> tuple[str, str] | None:
        ticket = request.ticket
        if not self._step <= ticket <= TICKET_MASK:
            return "ticket", f"ticket {ticket} is outside {self._step} to {TICKET_MASK}"
        holder = client.tickets.get(self._frames.place(ticket))
        if holder is not None:
            return "ticket", f"ticket {ticket} wants the place of ticket {holder}, which has not ended"
        if self._frames.is_published(TicketId(client.number, ticket)):
            return "ticket", f"ticket {ticket} has ended just now: use another number"
        if not 0 <= request.key < self._num_keys:
            return "key", f"key {request.key} is outside the store's {self._num_keys} experts"
        if len(client.tickets) >= client.quota:
            return "quota", f"all {client.quota} frames of the quota are held or awaited: release some first"
        return None

    def _grant(self, client: Client, request: Request, is_demand: bool) -> None:
        ticket = TicketId(client.number, request.ticket)
        client.tickets[self._frames.place(request.ticket)] = request.ticket
        client.num_fetched += 1
        self.counters.fetched += 1
        frame = self._frames.sealed_frame(request.key)
        fill = self._fills.get(request.key)
        if frame is not None:
            self._frames.lease(ticket, frame)
            self._publish(client, ticket)
            client.num_host_hits += 1
            self.counters.host_hits += 1
            return
        self.waits.begin(ticket, time.monotonic_ns())
        if fill is not None:
            self._frames.lease(ticket, fill.frame)
            fill.tickets.append(ticket)
            self.counters.coalesced += 1
        else:
            self.counters.coalesced += self.queue.add(ticket, request.key, request.deadline, is_demand)

    def promote(self, client: Client, tickets: Iterable[int]) -> None:
        """What was prefetch is demand now."""
        strange = []
        for ticket in tickets:
            if not self.queue.promote(TicketId(client.number, ticket)) and self._is_strange(client, ticket):
                strange.append(ticket)
        self._complain_of_strange(client, "promoted", strange)

    def cancel(self, client: Client, tickets: Iterable[int]) -> None:
        """What has not ended yet ends in Dropped."""
        strange = []
        for ticket in tickets:
            if self._withdraw(TicketId(client.number, ticket)):
                self.counters.cancelled += 1
                self._drop(client, ticket)
            elif self._is_strange(client, ticket):
                strange.append(ticket)
        self._complain_of_strange(client, "cancelled", strange)

    def release(self, client: Client, tickets: Iterable[int]) -> None:
        """The leases come back."""
        strange = []
        for ticket in tickets:
            place = self._frames.place(ticket)
            is_staged = self._frames.is_published(TicketId(client.number, ticket))
            if is_staged and self._frames.release(TicketId(client.number, ticket)):
                del client.tickets[place]
            else:
                strange.append(ticket)
        self._complain_of_strange(client, "released", strange)

    def _is_strange(self, client: Client, ticket: int) -> bool:
        """Neither under way nor just ended: a Cancel or Promote may cross its ticket's end."""
        if not 0 < ticket <= TICKET_MASK:
            return True
        is_open = client.tickets.get(self._frames.place(ticket)) == ticket
        return not is_open and not self._frames.is_published(TicketId(client.number, ticket))

    # --- ends ----------------------------------------------------------------------------------

    def _publish(self, client: Client, ticket: TicketId) -> None:
        word = self._frames.publish(ticket)
        if client.by_word:
            self._to_wake.add(client.eventfd)
        else:
            self.outbox.staged.setdefault(client.number, []).append(word)

    def drop_waiting(self) -> None:
        """Everything in the queue ends."""
        while (job := self.queue.take()) is not None:
            for client, ticket in job[1]:
                self._drop(self._clients[client], ticket)
        self.wake_clients()

    def drop_doomed(self, ticket: TicketId) -> None:
        """End a ticket whose fault has been sent, unless it was asked anew since."""
        client = self._clients.find(ticket.client)
        is_granted = ticket in self.queue or self._frames.has_lease(ticket)
        if client is not None and not is_granted:
            self._drop(client, ticket.ticket)

    def _drop(self, client: Client, ticket: int) -> None:
        self._end_dropped(client, ticket)
        if not client.by_word:
            self.outbox.dropped.setdefault(client.number, []).append(ticket)

    def _end_dropped(self, client: Client, ticket: int) -> None:
        """Publish Dropped, unless the ticket's place belongs to another that has not ended."""
        place = self._frames.place(ticket)
        if not self._step <= ticket <= TICKET_MASK or client.tickets.get(place, ticket) != ticket:
            return
        client.tickets.pop(place, None)
        self._frames.publish_dropped(TicketId(client.number, ticket))
        if client.by_word:
            self._to_wake.add(client.eventfd)

    def _withdraw(self, ticket: TicketId) -> bool:
        """Take the ticket out of the queue or away from its fill. False: it is in neither."""
        self.waits.forget(ticket)
        if self.queue.cancel(ticket):
            return True
        for fill in self._fills.values():
            if ticket in fill.tickets:
                fill.tickets.remove(ticket)
                self._frames.release(ticket)
                return True
        return False

    def forget_unleased(self, client: Client) -> None:
        """The client's tickets that hold no lease are gone, without a word."""
        for place, ticket in list(client.tickets.items()):
            identity = TicketId(client.number, ticket)
            self._withdraw(identity)
            if not self._frames.has_lease(identity):
                del client.tickets[place]

    def complain(self, client: Client, kind: str, text: str, tickets: list[int]) -> None:
        """Say it to the client; `tickets` end in Dropped once it has been said."""
        self.outbox.faults.append((client.number, Fault(kind, text, tuple(tickets))))
        self.outbox.doomed += [TicketId(client.number, ticket) for ticket in tickets]

    def _complain_of_strange(self, client: Client, deed: str, tickets: list[int]) -> None:
        if tickets:
            text = f"{len(tickets)} tickets were {deed} that are not this client's, the first is {tickets[0]}"
            self.outbox.faults.append((client.number, Fault("ticket", text, ())))

    def wake_clients(self) -> None:
        """Those whose words have changed."""
        for eventfd in self._to_wake:
            os.eventfd_write(eventfd, 1)
        self._to_wake.clear()
