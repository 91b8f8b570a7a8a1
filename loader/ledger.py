"""The ledger: clients, tickets and frames under one lock.

Shared by the service's loop and the reader threads. It moves no bytes and sends no message: what is
to be said to clients is put into the outbox. What becomes of a ticket is decided in tickets.py.
"""

import threading
from collections.abc import Iterable
from dataclasses import asdict

from loader.clients import Client, ClientTable
from loader.frames import FrameTable
from loader.outbox import Outbox
from loader.queue import TicketId
from loader.tickets import Fill, Tickets
from protocol.arena import Arena
from protocol.messages import Fetch


class Ledger:
    """Tickets, leases and clients. Every public method takes the lock."""

    def __init__(self, arena: Arena, store: str, num_keys: int) -> None:
        """Take over the arena: what its last loader left behind is recovered."""
        self._frames = FrameTable(arena, store)
        self._clients = ClientTable(arena)
        self._frames.recover([client.number for client in self._clients])
        for client in self._clients:
            for ticket in self._frames.leased_tickets(client.number):
                client.tickets[self._frames.place(ticket)] = ticket
        self._tickets = Tickets(
            self._frames, self._clients, num_keys=num_keys, step=arena.geometry.num_tickets
        )
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
            self._tickets.outbox.forget(client.number)
            if before is None:
                self._frames.clear_client(client.number)
            else:
                self._tickets.forget_unleased(before)
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
            self._tickets.release(client, [t for t in client.tickets.values() if t not in wanted])
            missing = sorted(wanted.difference(client.tickets.values()))
            if missing:
                self._tickets.complain(
                    client, "lease", f"{len(missing)} leases are not held any more", missing
                )
            self._work.notify_all()

    def remove(self, client: Client) -> None:
        """The client has left or is dead: its tickets end and its leases come back."""
        with self._work:
            self._tickets.forget_unleased(client)
            self._tickets.outbox.forget(client.number)
            self._clients.remove(client)  # first the row: should we crash now, all of it comes back
            self._frames.clear_client(client.number)
            self._work.notify_all()

    # --- tickets -----------------------------------------------------------------------------

    def fetch(self, client: Client, fetch: Fetch) -> None:
        """One layer-step's orders, in their order."""
        with self._work:
            self._tickets.release(client, fetch.released)
            for key in fetch.evicted:
                self._frames.touch(key)
            self._tickets.cancel(client, fetch.cancel)
            self._tickets.promote(client, fetch.promote)
            self._tickets.ask(client, fetch.demand, is_demand=True)
            self._tickets.ask(client, fetch.prefetch, is_demand=False)
            self._tickets.wake_clients()
            self._work.notify(len(self._tickets.queue))

    def release(self, client: Client, tickets: Iterable[int]) -> None:
        """The leases of these tickets come back."""
        with self._work:
            self._tickets.release(client, tickets)
            self._work.notify(len(self._tickets.queue))

    def drop_doomed(self, tickets: Iterable[TicketId]) -> None:
        """The faults have been sent: end these tickets."""
        with self._work:
            for ticket in tickets:
                self._tickets.drop_doomed(ticket)
            self._tickets.wake_clients()

    def take_outbox(self) -> Outbox:
        """What there is to say since the last call."""
        with self._work:
            return self._tickets.take_outbox()

    def stats(self, client: Client) -> dict[str, int]:
        """Counters of the loader, and of `client`."""
        with self._work:
            return {
                "epoch": self._frames.epoch,
                "frames_leased": self._frames.num_leased,
                "frames_sealed": self._frames.num_sealed,
                "clients": len(self._clients),
                **asdict(self._tickets.counters),
                "queue_depth": self._tickets.queue.num_keys,
                "waits": self._tickets.waits.count,
                "wait_us": self._tickets.waits.total_ns // 1000,
                "client_quota": client.quota,
                "client_tickets": len(client.tickets),
                "client_commands": client.num_heard,
                "client_fetched": client.num_fetched,
                "client_host_hits": client.num_host_hits,
            }

    def complain(self, client: Client, kind: str, text: str) -> None:
        """Put a fault that ends no ticket into the outbox."""
        with self._work:
            self._tickets.complain(client, kind, text, [])

    # --- the readers' side -------------------------------------------------------------------

    def take(self) -> Fill | None:
        """Wait for the most urgent expert and for a frame to put it in. None: the loader stops."""
        with self._work:
            while not (self._is_closing or (self._tickets.queue and self._frames.has_room)):
                self._work.wait()
            return None if self._is_closing else self._tickets.begin_fill()

    def finish(self, fill: Fill) -> bool:
        """The bytes are in the frame: seal it and tell those who wait.

        Returns whether the outbox has something to say.
        """
        with self._work:
            self._tickets.finish(fill)
            self._work.notify(len(self._tickets.queue))
            return bool(self._tickets.outbox)

    def fail(self, fill: Fill, text: str) -> None:
        """The expert cannot be read: its tickets end in Dropped, after a Fault that says why."""
        with self._work:
            self._tickets.fail(fill, text)
            self._work.notify_all()

    def give_up(self, fill: Fill) -> bool:
        """Stop a fill that nobody waits for any more. False: somebody does."""
        with self._work:
            is_unwanted = not fill.tickets
            if is_unwanted:
                self._tickets.abandon(fill)
                self._work.notify_all()
            return is_unwanted

    def stop(self) -> None:
        """Drop what still waits; `take` answers None from now on. Fills under way may finish."""
        with self._work:
            self._is_closing = True
            self._tickets.drop_waiting()
            self._work.notify_all()

    def close(self) -> None:
        """Close the clients' fds and let go of the arena, as it is. The last call; idempotent."""
        with self._work:
            self._clients.close()
            self._frames.close()
