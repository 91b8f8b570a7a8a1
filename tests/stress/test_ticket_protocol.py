"""The ticket protocol, both sides of it at once: a small world explored by hypothesis.

The loader's ledger, frames and queue, and the ledgers and ticket books of two clients (one told by
words, one by messages) share an arena; only the sockets are left out. Readers, service and clients
move when hypothesis says so; commands get lost, clients leave, and the loader crashes. The
invariants are those of docs/protocol.md.
"""

import os
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from compute.connection import Connection
from compute.ledger import Completion
from compute.ledger import Ledger as ClientLedger
from compute.tickets import TicketBook
from loader.clients import Client
from loader.ledger import Ledger
from loader.tickets import Fill
from protocol.arena import Arena, ArenaGeometry, create_arena_fd, split_completion
from protocol.errors import ProtocolError
from protocol.messages import Completions, Dropped, Event, Fetch, Release, Request, Staged

STORE = "cd" * 16
NUM_KEYS = 6
QUOTAS = (2, 1)
KINDS: tuple[Completions, Completions] = ("word", "message")
#: As many frames as are promised, and so few ticket places that numbers come round quickly.
GEOMETRY = ArenaGeometry(num_frames=3, frame_bytes=4096, num_clients=2, num_tickets=4)
NUM_READERS = 2
WHO = st.sampled_from([0, 1])
SOME = st.lists(st.integers(0, 3), max_size=2)


@dataclass
class Wire:
    """What a client's ledger wants of a connection."""

    arena: Arena
    words: memoryview
    eventfd: int
    events: deque[Event] = field(default_factory=deque)
    is_cut: bool = False
    answered: int = 0

    @property
    def bus(self) -> "Wire":
        return self

    @property
    def fileno(self) -> int:
        return self.eventfd

    def receive(self, timeout_s: float) -> Event | None:
        return self.events.popleft() if self.events else None

    def is_dead(self) -> bool:
        return self.is_cut


class Guest:
    """One client: its books, and what it has been told."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.quota = QUOTAS[number]
        self.client: Client | None = None
        self.begin()

    def begin(self) -> None:
        self.book: TicketBook[Completion] = TicketBook(GEOMETRY.num_tickets, self.quota)
        self.ledger = ClientLedger(self.book, KINDS[self.number])
        self.keys: dict[int, int] = {}
        self.untold: set[int] = set()
        self.loses_next = False
        self.has_lost = False


class TicketProtocol(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.fd = create_arena_fd(GEOMETRY)
        self.arena = Arena(self.fd, writable=True)
        self.ledger = Ledger(self.arena, STORE, NUM_KEYS)
        self.fills: list[Fill] = []
        self.guests = [Guest(number) for number in range(len(QUOTAS))]
        self.wires = [self.come_in(guest, -1) for guest in self.guests]
        self.generations = self.arena.frame_table[:, 0].copy()

    def teardown(self) -> None:
        try:
            self.everybody_gets_what_it_awaits()
        finally:
            self.ledger.close()
            for wire in self.wires:
                self.cut(wire)
            self.arena.close()
            os.close(self.fd)

    # --- coming and going ----------------------------------------------------------------------

    def come_in(self, guest: Guest, resume: int) -> Wire:
        """Through the door; Hello is to follow."""
        client = guest.client = self.ledger.admit(os.getpid(), guest.quota, resume)
        assert client.number == guest.number
        client.eventfd = os.eventfd(0, os.EFD_NONBLOCK)
        client.by_word = KINDS[guest.number] == "word"
        self.ledger.seat(client)
        wire = Wire(self.arena, memoryview(self.arena.completions[guest.number]), os.eventfd(1))
        if resume < 0:
            self.ledger.greet(client, ())
        return wire

    def come_back(self, guest: Guest) -> None:
        """A new session: what is held is said, what is awaited is asked again, as LoaderClient does."""
        old = self.wires[guest.number]
        wire = self.wires[guest.number] = self.come_in(guest, guest.number)
        guest.ledger.collect_words(cast(Connection, wire))
        self.cut(old)
        assert guest.client
        self.ledger.greet(guest.client, tuple(guest.book.held))
        guest.loses_next = guest.has_lost = False
        guest.ledger.forget_loader(self.arena)
        awaited = list(guest.book.asked.values())
        demand = tuple(asked.request for asked in awaited if asked.is_demand)
        prefetch = tuple(asked.request for asked in awaited if not asked.is_demand)
        self.send(guest, Fetch(demand=demand, prefetch=prefetch))

    def cut(self, wire: Wire) -> None:
        wire.words.release()
        os.close(wire.eventfd)

    def send(self, guest: Guest, command: Fetch | Release) -> None:
        if guest.loses_next:
            guest.loses_next, guest.has_lost = False, True
            return
        assert guest.client
        if isinstance(command, Fetch):
            self.ledger.fetch(guest.client, command)
        else:
            self.ledger.release(guest.client, command.tickets)

    # --- what clients do -----------------------------------------------------------------------

    @rule(who=WHO, keys=st.lists(st.integers(0, NUM_KEYS - 1), max_size=2), demand=st.booleans(), some=SOME)
    def layer_step(self, who: int, keys: list[int], demand: bool, some: list[int]) -> None:
        """Release some, promote one, cancel one, ask for more: one message."""
        guest = self.guests[who]
        released = self.give_up(guest, some)
        awaited = list(guest.book.asked)
        promote, cancel = tuple(awaited[:1] * (len(some) == 1)), tuple(awaited[1:2])
        guest.book.cancel(cancel)
        guest.book.promote(promote)
        requests = tuple(self.ask(guest, key, demand) for key in keys[: max(guest.book.room, 0)])
        fetch = Fetch(requests if demand else (), () if demand else requests, promote, cancel, released)
        self.send(guest, fetch)

    @rule(who=WHO)
    def cancel_all(self, who: int) -> None:
        guest = self.guests[who]
        guest.book.cancel(guest.book.asked)
        self.send(guest, Fetch(cancel=tuple(guest.book.asked)))

    @rule(who=WHO, some=SOME)
    def release_some(self, who: int, some: list[int]) -> None:
        guest = self.guests[who]
        self.send(guest, Release(self.give_up(guest, some)))

    @rule(who=WHO)
    def look(self, who: int) -> None:
        """As in a wait: news, or a complaint that only a lost command can explain."""
        guest, wire = self.guests[who], cast(Connection, self.wires[who])
        try:
            guest.ledger.collect(wire)
            guest.ledger.take_events(wire)
        except ProtocolError:
            assert guest.has_lost, "a complaint without a reason"
            self.come_back(guest)
        for completion in guest.ledger.tell():
            guest.untold.remove(completion.ticket)  # KeyError: it ended twice
            assert not completion.is_dropped or completion.ticket not in guest.book.held

    @rule(who=WHO)
    def lose_the_next_command(self, who: int) -> None:
        self.guests[who].loses_next = True

    @rule(who=WHO)
    def notice_in_a_silence(self, who: int) -> None:
        if self.guests[who].has_lost:
            self.come_back(self.guests[who])

    @rule(who=WHO)
    def leave_and_come_anew(self, who: int) -> None:
        guest = self.guests[who]
        assert guest.client
        self.ledger.remove(guest.client)
        self.cut(self.wires[who])
        guest.begin()
        self.wires[who] = self.come_in(guest, -1)

    def ask(self, guest: Guest, key: int, demand: bool) -> Request:
        request = guest.book.ask(key, 0, is_demand=demand)
        guest.keys[request.ticket] = key
        guest.untold.add(request.ticket)
        return request

    def give_up(self, guest: Guest, some: Iterable[int]) -> tuple[int, ...]:
        told = [ticket for ticket in guest.book.held if ticket not in guest.untold]
        chosen = [ticket for place, ticket in enumerate(told) if place in some]
        return tuple(guest.book.release(ticket).ticket for ticket in chosen)

    # --- what the loader does ------------------------------------------------------------------

    @property
    def may_take(self) -> bool:
        has_work = bool(self.ledger._tickets.queue) and self.ledger._frames.has_room
        return has_work and len(self.fills) < NUM_READERS

    @precondition(lambda self: self.may_take)
    @rule()
    def a_reader_begins(self) -> None:
        fill = self.ledger.take()
        assert fill is not None
        self.arena.frames[fill.frame] = 255
        self.fills.append(fill)

    @precondition(lambda self: self.fills)
    @rule(is_bad=st.booleans())
    def a_reader_ends(self, is_bad: bool) -> None:
        fill = self.fills.pop(0)
        if is_bad:
            self.ledger.fail(fill, "bad bytes")
        else:
            self.arena.frames[fill.frame] = fill.key
            self.ledger.finish(fill)

    @rule()
    def the_service_speaks(self) -> None:
        outbox = self.ledger.take_outbox()
        for number, fault in outbox.faults:
            self.wires[number].events.append(fault)
        for number, words in outbox.staged.items():
            self.wires[number].events.append(Staged(tuple(words)))
        for number, tickets in outbox.dropped.items():
            self.wires[number].events.append(Dropped(tuple(tickets)))
        self.ledger.drop_doomed(outbox.doomed)

    @rule()
    def all_is_well_for_a_while(self) -> None:
        """Shortens the way to clients that hold something."""
        while self.may_take:
            self.a_reader_begins()
        while self.fills:
            self.a_reader_ends(is_bad=False)
        self.the_service_speaks()
        for guest in self.guests:
            self.look(guest.number)

    @rule()
    def the_loader_crashes(self) -> None:
        """Nothing of it stays but the arena; each client finds the successor."""
        epoch = self.ledger.epoch
        self.ledger.close()
        self.fills = []
        for guest, wire in zip(self.guests, self.wires, strict=True):
            wire.is_cut = True
            wire.events = deque(event for event in wire.events if not isinstance(event, Dropped))
            guest.ledger.collect_words(cast(Connection, wire))
        self.ledger = Ledger(self.arena, STORE, NUM_KEYS)
        assert self.ledger.epoch == epoch + 1
        for guest in self.guests:
            self.come_back(guest)

    # --- invariants ----------------------------------------------------------------------------

    @invariant()
    def no_lease_without_a_client(self) -> None:
        numbers = {client.number for client in self.ledger.clients()}
        for client, place in np.argwhere(self.arena.leases):
            assert client in numbers
            ticket, _, frame = split_completion(int(self.arena.leases[client, place]))
            assert ticket & (GEOMETRY.num_tickets - 1) == place and frame < GEOMETRY.num_frames

    @invariant()
    def no_frame_is_refilled_under_a_lease_and_no_stale_generation_is_used(self) -> None:
        for guest in self.guests:
            for ticket, completion in guest.book.held.items():
                assert completion.is_current()
                assert (completion.blob() == guest.keys[ticket]).all()

    @invariant()
    def generations_only_grow(self) -> None:
        now = self.arena.frame_table[:, 0].copy()
        assert (now >= self.generations).all()
        self.generations = now

    @invariant()
    def nobody_has_more_than_its_quota(self) -> None:
        for client in self.ledger.clients():
            assert len(client.tickets) <= client.quota

    def everybody_gets_what_it_awaits(self) -> None:
        """Demand always progresses: with readers that read and clients that release, everything ends."""
        for _ in range(60):
            for guest in self.guests:
                guest.loses_next = False
                self.notice_in_a_silence(guest.number)
            self.all_is_well_for_a_while()
            for guest in self.guests:
                self.send(guest, Release(self.give_up(guest, range(4))))
            if not any(guest.book.num_open for guest in self.guests):
                break
        assert [guest.book.num_open for guest in self.guests] == [0, 0]
        assert not self.arena.leases.any()


TicketProtocol.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestTicketProtocol = TicketProtocol.TestCase


@pytest.mark.parametrize("demand", [False, True])
@pytest.mark.parametrize("who", [0, 1])
def test_a_failed_read_ends_its_ticket_by_word_and_by_message(who: int, demand: bool) -> None:
    world = TicketProtocol()
    try:
        world.layer_step(demand=demand, keys=[0], some=[], who=who)
        world.a_reader_begins()
        world.a_reader_ends(is_bad=True)
    finally:
        world.teardown()


class _Longer(TicketProtocol):
    """The same world, for `make stress`."""


_Longer.TestCase.settings = settings(max_examples=5000, stateful_step_count=80, deadline=None)
TestTicketProtocolForLong = pytest.mark.stress(pytest.mark.timeout(3600)(_Longer.TestCase))
