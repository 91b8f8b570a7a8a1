"""The ledger: the life of every ticket, from the asking to the end.

asked -> waiting (queue) -> filling -> leased -> released, or dropped from the first three. Shared by
the service's loop and the reader threads under one lock; it moves no bytes and sends no message,
what is to be said to clients is put into the outbox.
"""

import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from loader.clients import Client, ClientTable
from loader.frames import FrameTable
from loader.outbox import Outbox
from loader.queue import FetchQueue, TicketId
from loader.waits import Waits
from protocol.arena import TICKET_MASK, Arena
from protocol.messages import Fault, Fetch, Request


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


class Ledger:
    """Tickets, leases and clients. Every public method takes the lock."""

    def __init__(self, arena: Arena, store: str, num_keys: int) -> None:
        """Take over the arena: what its last loader left behind is recovered."""
        self._num_keys = num_keys
        self._ticket_step = arena.geometry.num_tickets
        self._frames = FrameTable(arena, store)
        self._clients = ClientTable(arena)
        self._frames.recover([client.number for client in self._clients])
        for client in self._clients:
            for ticket in self._frames.leased_tickets(client.number):
                client.tickets[self._frames.place(ticket)] = ticket
        self._queue = FetchQueue()
        self._fills: dict[int, Fill] = {}
        self._outbox = Outbox()
        self._to_wake: set[int] = set()
        self._counters = Counters()
        self._waits = Waits()
        self._is_closing = False
        self._work = threading.Condition(threading.Lock())

    # --- clients -----------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        return self._frames.epoch

    def clients(self) -> list[Client]:
        """Everyone who is in, or lived through a crash of the last loader and is awaited."""
        with self._work:
            return list(self._clients)

    def admit(self, pid: int, quota: int, resume: int) -> Client:
        """Let a process in. A client that comes back keeps its leases, and asks again for the rest.

        Raises RefusedError.
        """
        with self._work:
            before = self._clients.find(resume)
            client = self._clients.admit(pid, quota, resume)
            self._outbox.forget(client.number)
            if before is None:
                self._frames.clear_client(client.number)
            else:
                self._forget_unleased(before)
                client.tickets = before.tickets
            return client

    def seat(self, client: Client) -> None:
        """The client has its Welcome: a successor will know it."""
        with self._work:
            self._clients.seat(client)

    def greet(self, client: Client, held: Iterable[int]) -> None:
        """Hello: the client still holds these leases, every other one comes back."""
        with self._work:
            wanted = set(held)
            client.is_greeted = True
            self._release(client, [t for t in client.tickets.values() if t not in wanted])
            missing = sorted(wanted.difference(client.tickets.values()))
            if missing:
                self._complain(client, "lease", f"{len(missing)} leases are not held any more", missing)
            self._work.notify_all()

    def remove(self, client: Client) -> None:
        """The client has left or is dead: its tickets end and its leases come back."""
        with self._work:
            self._forget_unleased(client)
            self._outbox.forget(client.number)
            self._clients.remove(client)  # first the row: should we crash now, all of it comes back
            self._frames.clear_client(client.number)
            self._work.notify_all()

    # --- tickets -----------------------------------------------------------------------------

    def fetch(self, client: Client, fetch: Fetch) -> None:
        """One layer-step's orders, in their order."""
        with self._work:
            self._release(client, fetch.released)
            for key in fetch.evicted:
                self._frames.touch(key)
            self._cancel(client, fetch.cancel)
            self._promote(client, fetch.promote)
            self._ask(client, fetch.demand, is_demand=True)
            self._ask(client, fetch.prefetch, is_demand=False)
            self._wake_clients()
            self._work.notify(len(self._queue))

    def release(self, client: Client, tickets: Iterable[int]) -> None:
        """The leases of these tickets come back."""
        with self._work:
            self._release(client, tickets)
            self._work.notify(len(self._queue))

    def drop_doomed(self, tickets: Iterable[TicketId]) -> None:
        """The faults have been sent: end these tickets."""
        with self._work:
            for ticket in tickets:
                client = self._clients.find(ticket.client)
                is_granted = ticket in self._queue or self._frames.has_lease(ticket)  # asked anew since
                if client is not None and not is_granted:
                    self._drop(client, ticket.ticket)
            self._wake_clients()

    def take_outbox(self) -> Outbox:
        """What there is to say since the last call."""
        with self._work:
            outbox, self._outbox = self._outbox, Outbox()
            return outbox

    def stats(self, client: Client) -> dict[str, int]:
        """Counters of the loader, and of `client`."""
        with self._work:
            return {
                "epoch": self._frames.epoch,
                "frames_leased": self._frames.num_leased,
                "frames_sealed": self._frames.num_sealed,
                "clients": len(self._clients),
                "fetched": self._counters.fetched,
                "host_hits": self._counters.host_hits,
                "coalesced": self._counters.coalesced,
                "cancelled": self._counters.cancelled,
                "queue_depth": self._queue.num_keys,
                "waits": self._waits.count,
                "wait_us": self._waits.total_ns // 1000,
                "client_quota": client.quota,
                "client_tickets": len(client.tickets),
                "client_commands": client.num_heard,
                "client_fetched": client.num_fetched,
                "client_host_hits": client.num_host_hits,
            }

    def complain(self, client: Client, kind: str, text: str) -> None:
        """Put a fault that ends no ticket into the outbox."""
        with self._work:
            self._complain(client, kind, text, [])

    # --- the readers' side -------------------------------------------------------------------

    def take(self) -> Fill | None:
        """Wait for the most urgent expert and for a frame to put it in. None: the loader stops."""
        with self._work:
            while not (self._is_closing or (self._queue and self._frames.has_room)):
                self._work.wait()
            job = None if self._is_closing else self._queue.take()
            if job is None:
                return None
            key, tickets = job
            fill = self._fills[key] = Fill(key, self._frames.begin_fill(key, tickets), tickets)
            return fill

    def finish(self, fill: Fill) -> bool:
        """The bytes are in the frame: seal it and tell those who wait.

        Returns whether the outbox has something to say.
        """
        with self._work:
            del self._fills[fill.key]
            self._frames.seal(fill.frame)
            now_ns = time.monotonic_ns()
            for ticket in fill.tickets:
                self._waits.end(ticket, now_ns)
                self._publish(self._clients[ticket.client], ticket)
            self._wake_clients()
            self._work.notify(len(self._queue))
            return bool(self._outbox)

    def fail(self, fill: Fill, text: str) -> None:
        """The expert cannot be read: its tickets end in Dropped, after a Fault that says why."""
        with self._work:
            self._abandon(fill)
            by_client: dict[int, list[int]] = {}
            for client, ticket in fill.tickets:
                by_client.setdefault(client, []).append(ticket)
            for client, tickets in by_client.items():
                self._complain(self._clients[client], "store", text, tickets)

    def give_up(self, fill: Fill) -> bool:
        """Stop a fill that nobody waits for any more. False: somebody does."""
        with self._work:
            if not fill.tickets:
                self._abandon(fill)
            return not fill.tickets

    def stop(self) -> None:
        """Drop what still waits; `take` answers None from now on. Fills under way may finish."""
        with self._work:
            self._is_closing = True
            while (job := self._queue.take()) is not None:
                for client, ticket in job[1]:
                    self._drop(self._clients[client], ticket)
            self._wake_clients()
            self._work.notify_all()

    def close(self) -> None:
        """Close the clients' fds and let go of the arena, as it is. The last call; idempotent."""
        with self._work:
            self._clients.close()
            self._frames.close()

    # --- asking, under the lock --------------------------------------------------------------

    def _ask(self, client: Client, requests: Iterable[Request], is_demand: bool) -> None:
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
            self._complain(client, kind, text, tickets)
        if again:
            text = f"{len(again)} tickets were asked again before they ended, the first is {again[0]}"
            self._outbox.faults.append((client.number, Fault("ticket", text, ())))

    def _problem(self, client: Client, request: Request) -> tuple[str, str] | None:
        ticket = request.ticket
        if not self._ticket_step <= ticket <= TICKET_MASK:
            return "ticket", f"ticket {ticket} is outside {self._ticket_step} to {TICKET_MASK}"
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
        self._counters.fetched += 1
        frame = self._frames.sealed_frame(request.key)
        fill = self._fills.get(request.key)
        if frame is not None:
            self._frames.lease(ticket, frame)
            self._publish(client, ticket)
            client.num_host_hits += 1
            self._counters.host_hits += 1
            return
        self._waits.begin(ticket, time.monotonic_ns())
        if fill is not None:
            self._frames.lease(ticket, fill.frame)
            fill.tickets.append(ticket)
            self._counters.coalesced += 1
        else:
            self._counters.coalesced += self._queue.add(ticket, request.key, request.deadline, is_demand)

    def _promote(self, client: Client, tickets: Iterable[int]) -> None:
        strange = []
        for ticket in tickets:
            if not self._queue.promote(TicketId(client.number, ticket)) and self._is_strange(client, ticket):
                strange.append(ticket)
        self._complain_of_strange(client, "promoted", strange)

    def _cancel(self, client: Client, tickets: Iterable[int]) -> None:
        strange = []
        for ticket in tickets:
            if self._withdraw(TicketId(client.number, ticket)):
                self._counters.cancelled += 1
                self._drop(client, ticket)
            elif self._is_strange(client, ticket):
                strange.append(ticket)
        self._complain_of_strange(client, "cancelled", strange)

    def _release(self, client: Client, tickets: Iterable[int]) -> None:
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

    # --- ends, under the lock ----------------------------------------------------------------

    def _publish(self, client: Client, ticket: TicketId) -> None:
        word = self._frames.publish(ticket)
        if client.by_word:
            self._to_wake.add(client.eventfd)
        else:
            self._outbox.staged.setdefault(client.number, []).append(word)

    def _drop(self, client: Client, ticket: int) -> None:
        self._end_dropped(client, ticket)
        if not client.by_word:
            self._outbox.dropped.setdefault(client.number, []).append(ticket)

    def _end_dropped(self, client: Client, ticket: int) -> None:
        """Publish Dropped, unless the ticket's place belongs to another that has not ended."""
        place = self._frames.place(ticket)
        if not self._ticket_step <= ticket <= TICKET_MASK or client.tickets.get(place, ticket) != ticket:
            return
        client.tickets.pop(place, None)
        self._frames.publish_dropped(TicketId(client.number, ticket))
        if client.by_word:
            self._to_wake.add(client.eventfd)

    def _withdraw(self, ticket: TicketId) -> bool:
        """Take the ticket out of the queue or away from its fill. False: it is in neither."""
        self._waits.forget(ticket)
        if self._queue.cancel(ticket):
            return True
        for fill in self._fills.values():
            if ticket in fill.tickets:
                fill.tickets.remove(ticket)
                self._frames.release(ticket)
                return True
        return False

    def _forget_unleased(self, client: Client) -> None:
        for place, ticket in list(client.tickets.items()):
            identity = TicketId(client.number, ticket)
            self._withdraw(identity)
            if not self._frames.has_lease(identity):
                del client.tickets[place]

    def _abandon(self, fill: Fill) -> None:
        del self._fills[fill.key]
        for ticket in fill.tickets:
            self._waits.forget(ticket)
            self._frames.release(ticket)
        self._frames.abandon(fill.frame)
        self._work.notify_all()

    def _complain(self, client: Client, kind: str, text: str, tickets: list[int]) -> None:
        self._outbox.faults.append((client.number, Fault(kind, text, tuple(tickets))))
        self._outbox.doomed += [TicketId(client.number, ticket) for ticket in tickets]

    def _complain_of_strange(self, client: Client, deed: str, tickets: list[int]) -> None:
        if tickets:
            text = f"{len(tickets)} tickets were {deed} that are not this client's, the first is {tickets[0]}"
            self._outbox.faults.append((client.number, Fault("ticket", text, ())))

    def _wake_clients(self) -> None:
        for eventfd in self._to_wake:
            os.eventfd_write(eventfd, 1)
        self._to_wake.clear()
