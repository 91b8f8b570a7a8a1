"""The ledger, explored by hypothesis: tickets, leases, fills, clients that leave, and crashes.

What must hold whatever happens: a client that was told of a frame finds its expert's bytes in it
until it lets go; every ticket ends exactly once; a quota is never exceeded; demand progresses.
"""

import os
import random
import select
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from loader.clients import Client
from loader.ledger import Ledger
from loader.tickets import Fill
from protocol.arena import (
    C_START_TIME,
    DROPPED_FRAME,
    Arena,
    ArenaGeometry,
    create_arena_fd,
    split_completion,
)
from protocol.errors import RefusedError
from protocol.messages import Fault, Fetch, Request

STORE = "ab" * 16
NUM_KEYS = 6
QUOTAS = (2, 1)
GEOMETRY = ArenaGeometry(num_frames=5, frame_bytes=4096, num_clients=2, num_tickets=64)
#: As many frames as the quotas promise, fewer than there are experts.
TIGHT = ArenaGeometry(num_frames=3, frame_bytes=4096, num_clients=2, num_tickets=64)
NUM_READERS = 2


@dataclass
class Guest:
    """What a client knows: its tickets on their way, those it was given, and their keys."""

    number: int
    quota: int
    client: Client | None = None
    next_ticket: int = 64
    awaited: dict[int, int] = field(default_factory=dict)
    held: dict[int, int] = field(default_factory=dict)

    def new_ticket(self) -> int:
        self.next_ticket += 1
        return self.next_ticket - 1


class LedgerUnderFire(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.fd = create_arena_fd(TIGHT)
        self.arena = Arena(self.fd, writable=True)
        self.ledger = Ledger(self.arena, STORE, NUM_KEYS)
        self.guests = [Guest(number, quota) for number, quota in enumerate(QUOTAS)]
        self.fills: list[Fill] = []
        self.epochs = 1
        for guest in self.guests:
            self.come_in(guest, resume=-1)

    def teardown(self) -> None:
        self.ledger.close()
        self.arena.close()
        os.close(self.fd)

    # --- what clients do ---------------------------------------------------------------------

    def come_in(self, guest: Guest, resume: int) -> None:
        guest.client = self.ledger.admit(os.getpid(), guest.quota, resume)
        guest.client.eventfd = os.eventfd(0, os.EFD_NONBLOCK)
        self.ledger.seat(guest.client)
        assert guest.client.number == guest.number
        self.ledger.greet(guest.client, guest.held)

    def look(self) -> None:
        """Every client looks at its completion words, as after a wait."""
        for guest in self.guests:
            for ticket, key in list(guest.awaited.items()):
                number, _, frame = split_completion(int(self.arena.completions[guest.number, ticket & 63]))
                if number != ticket:
                    continue
                del guest.awaited[ticket]
                if frame != DROPPED_FRAME:
                    guest.held[ticket] = key

    @rule(
        who=st.sampled_from([0, 1]),
        keys=st.lists(st.integers(0, NUM_KEYS - 1), max_size=3),
        demand=st.booleans(),
    )
    def ask(self, who: int, keys: list[int], demand: bool) -> None:
        guest = self.guests[who]
        room = guest.quota - len(guest.awaited) - len(guest.held)
        requests = tuple(Request(guest.new_ticket(), key, 0) for key in keys[: max(room, 0)])
        guest.awaited |= {request.ticket: request.key for request in requests}
        assert guest.client
        self.ledger.fetch(guest.client, Fetch(demand=requests) if demand else Fetch(prefetch=requests))

    @rule(who=st.sampled_from([0, 1]), choice=st.randoms())
    def cancel_or_promote_some(self, who: int, choice: random.Random) -> None:
        guest = self.guests[who]
        some = [ticket for ticket in guest.awaited if choice.random() < 0.5]
        assert guest.client
        if choice.random() < 0.5:
            self.ledger.fetch(guest.client, Fetch(cancel=tuple(some)))
        else:
            self.ledger.fetch(guest.client, Fetch(promote=tuple(some)))

    @rule(who=st.sampled_from([0, 1]), choice=st.randoms())
    def release_some(self, who: int, choice: random.Random) -> None:
        guest = self.guests[who]
        some = [ticket for ticket in guest.held if choice.random() < 0.5]
        keys = tuple(guest.held.pop(ticket) for ticket in some)
        assert guest.client
        self.ledger.fetch(guest.client, Fetch(released=tuple(some), evicted=keys))

    @rule(who=st.sampled_from([0, 1]))
    def leave_and_come_again(self, who: int) -> None:
        guest = self.guests[who]
        assert guest.client
        self.ledger.remove(guest.client)
        guest.awaited.clear()
        guest.held.clear()
        self.come_in(guest, resume=-1)

    # --- what readers do ---------------------------------------------------------------------

    @precondition(lambda self: len(self.fills) < NUM_READERS and self.can_take())
    @rule()
    def take(self) -> None:
        fill = self.ledger.take()
        assert fill is not None
        self.arena.frames[fill.frame] = 255  # torn, while it lasts
        self.fills.append(fill)

    def can_take(self) -> bool:
        return bool(self.ledger._tickets.queue) and self.ledger._frames.has_room

    @precondition(lambda self: self.fills)
    @rule(choice=st.randoms())
    def finish(self, choice: random.Random) -> None:
        fill = self.fills.pop(choice.randrange(len(self.fills)))
        self.arena.frames[fill.frame] = fill.key
        self.ledger.finish(fill)

    @precondition(lambda self: self.fills)
    @rule()
    def fail(self) -> None:
        fill = self.fills.pop()
        num_waiting = len(fill.tickets)
        self.ledger.fail(fill, "the disk is gone")
        outbox = self.ledger.take_outbox()
        assert sum(len(fault.tickets) for _, fault in outbox.faults) == num_waiting == len(outbox.doomed)
        self.ledger.drop_doomed(outbox.doomed)

    @precondition(lambda self: self.fills)
    @rule()
    def give_up(self) -> None:
        fill = self.fills[-1]
        assert self.ledger.give_up(fill) == (not fill.tickets)
        if not fill.tickets:
            self.fills.pop()

    # --- what happens to the loader ----------------------------------------------------------

    @rule()
    def crash(self) -> None:
        """A new loader takes over the arena; the clients come back and ask again for the rest."""
        self.look()
        self.ledger.close()
        self.fills.clear()
        self.ledger = Ledger(self.arena, STORE, NUM_KEYS)
        self.epochs += 1
        assert self.ledger.epoch == self.epochs
        for guest in self.guests:
            self.come_in(guest, resume=guest.number)
            requests = tuple(Request(ticket, key, 0) for ticket, key in guest.awaited.items())
            assert guest.client
            self.ledger.fetch(guest.client, Fetch(demand=requests))

    # --- what must hold ----------------------------------------------------------------------

    @invariant()
    def whoever_was_told_of_a_frame_finds_its_expert_there(self) -> None:
        self.look()
        for guest in self.guests:
            for ticket, key in guest.held.items():
                word = int(self.arena.completions[guest.number, ticket & 63])
                _, generation, frame = split_completion(word)
                assert int(self.arena.leases[guest.number, ticket & 63]) == word
                assert int(self.arena.frame_table[frame, 0]) == generation
                assert (self.arena.frames[frame] == key).all()

    @invariant()
    def the_books_agree_with_the_clients(self) -> None:
        self.look()
        for guest in self.guests:
            assert guest.client
            assert set(guest.client.tickets.values()) == set(guest.awaited) | set(guest.held)
            assert len(guest.client.tickets) <= guest.quota

    @invariant()
    def no_lease_is_without_a_ticket(self) -> None:
        self.look()
        for guest in self.guests:
            leased = {int(word) >> 40 for word in self.arena.leases[guest.number] if word}
            assert leased <= set(guest.awaited) | set(guest.held)

    @invariant()
    def demand_progresses(self) -> None:
        assert not self.ledger._tickets.queue or self.fills or self.ledger._frames.has_room

    @invariant()
    def nobody_complained(self) -> None:
        assert self.ledger.take_outbox().faults == []


LedgerUnderFire.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLedgerUnderFire = LedgerUnderFire.TestCase


@dataclass
class Desk:
    ledger: Ledger
    client: Client
    arena: Arena

    def faults(self) -> list[Fault]:
        """Say what there is to say, as the service does."""
        outbox = self.ledger.take_outbox()
        self.ledger.drop_doomed(outbox.doomed)
        return [fault for _, fault in outbox.faults]

    def is_dropped(self, ticket: int) -> bool:
        number, _, frame = split_completion(int(self.arena.completions[0, ticket & 63]))
        return number == ticket and frame == DROPPED_FRAME


def fill_next(desk: Desk) -> None:
    """What a reader thread does with the most urgent expert."""
    fill = desk.ledger.take()
    assert fill is not None
    desk.ledger.finish(fill)


@pytest.fixture
def desk() -> Iterator[Desk]:
    fd = create_arena_fd(GEOMETRY)
    with Arena(fd, writable=True) as arena:
        ledger = Ledger(arena, STORE, NUM_KEYS)
        client = ledger.admit(os.getpid(), 3, -1)
        client.eventfd = os.eventfd(0, os.EFD_NONBLOCK)
        ledger.greet(client, ())
        yield Desk(ledger, client, arena)
        ledger.close()
    os.close(fd)


def test_more_than_the_quota_is_refused_and_the_rest_served(desk: Desk) -> None:
    desk.ledger.fetch(desk.client, Fetch(demand=tuple(Request(64 + n, n, 0) for n in range(5))))
    (fault,) = desk.faults()
    assert (fault.kind, fault.tickets) == ("quota", (67, 68))
    assert desk.is_dropped(67) and desk.is_dropped(68) and not desk.is_dropped(64)
    assert desk.ledger.stats(desk.client)["queue_depth"] == 3


@pytest.mark.parametrize("key", [-1, NUM_KEYS, 2**63])
def test_a_key_outside_the_store_is_refused(desk: Desk, key: int) -> None:
    desk.ledger.fetch(desk.client, Fetch(demand=(Request(64, key, 0),)))
    (fault,) = desk.faults()
    assert (fault.kind, fault.tickets) == ("key", (64,))
    assert desk.is_dropped(64)


@pytest.mark.parametrize("ticket", [0, 5, 63, -1, 2**24, 2**63])
def test_a_ticket_outside_its_range_is_refused(desk: Desk, ticket: int) -> None:
    desk.ledger.fetch(
        desk.client, Fetch(demand=(Request(ticket, 1, 0),), cancel=(ticket,), promote=(ticket,))
    )
    assert {fault.kind for fault in desk.faults()} == {"ticket"}
    assert desk.ledger.stats(desk.client)["client_tickets"] == 0


def test_the_place_of_an_open_ticket_cannot_be_taken(desk: Desk) -> None:
    desk.ledger.fetch(desk.client, Fetch(demand=(Request(64, 1, 0),)))
    desk.ledger.fetch(desk.client, Fetch(demand=(Request(128, 2, 0),)))
    (fault,) = desk.faults()
    assert (fault.kind, fault.tickets) == ("ticket", (128,))
    assert int(desk.arena.completions[0, 0]) == 0


def test_a_ticket_that_has_just_ended_cannot_be_used_again(desk: Desk) -> None:
    desk.ledger.fetch(desk.client, Fetch(demand=(Request(64, 1, 0),)))
    desk.ledger.fetch(desk.client, Fetch(cancel=(64,)))
    assert desk.is_dropped(64) and desk.faults() == []
    desk.ledger.fetch(desk.client, Fetch(demand=(Request(64, 1, 0),)))
    assert [fault.kind for fault in desk.faults()] == ["ticket"]


@pytest.mark.parametrize("is_staged", [False, True])
def test_a_ticket_that_is_asked_again_before_it_ended_ends_as_it_would_have(
    desk: Desk, is_staged: bool
) -> None:
    desk.ledger.fetch(desk.client, Fetch(demand=(Request(64, 1, 0),)))
    if is_staged:
        fill_next(desk)
    desk.ledger.fetch(desk.client, Fetch(demand=(Request(64, 1, 0),)))
    assert [(fault.kind, fault.tickets) for fault in desk.faults()] == [("ticket", ())]
    if not is_staged:
        fill_next(desk)
    assert int(desk.arena.completions[0, 0]) >> 40 == 64 and not desk.is_dropped(64)
    desk.ledger.release(desk.client, [64])
    assert desk.faults() == []
    assert desk.ledger.stats(desk.client)["frames_leased"] == 0


def test_a_ticket_that_is_refused_and_asked_anew_in_one_message_ends_once(desk: Desk) -> None:
    desk.ledger.fetch(desk.client, Fetch(demand=(Request(64, -1, 0), Request(64, 1, 0))))
    assert [fault.kind for fault in desk.faults()] == ["key"]
    fill_next(desk)
    assert not desk.is_dropped(64)
    desk.ledger.release(desk.client, [64])
    assert desk.ledger.stats(desk.client)["client_tickets"] == 0


def test_releasing_what_one_does_not_hold_is_a_fault_that_ends_nothing(desk: Desk) -> None:
    desk.ledger.fetch(desk.client, Fetch(demand=(Request(64, 1, 0),)))
    desk.ledger.release(desk.client, [64, 99])
    (fault,) = desk.faults()
    assert (fault.kind, fault.tickets) == ("ticket", ())
    assert desk.ledger.stats(desk.client)["client_tickets"] == 1


def test_an_expert_on_its_way_is_not_read_twice(desk: Desk) -> None:
    desk.ledger.fetch(desk.client, Fetch(prefetch=(Request(64, 1, 0),)))
    fill = desk.ledger.take()
    assert fill
    desk.ledger.fetch(desk.client, Fetch(demand=(Request(65, 1, 0),)))
    desk.ledger.finish(fill)
    words = [int(desk.arena.completions[0, place]) for place in (0, 1)]
    assert [split_completion(word)[0] for word in words] == [64, 65]
    assert split_completion(words[0])[1:] == split_completion(words[1])[1:]
    assert desk.ledger.stats(desk.client)["coalesced"] == 1


def test_an_expert_in_a_frame_is_leased_at_once(desk: Desk) -> None:
    desk.ledger.fetch(desk.client, Fetch(demand=(Request(64, 1, 0),)))
    fill = desk.ledger.take()
    assert fill
    desk.ledger.finish(fill)
    os.eventfd_read(desk.client.eventfd)
    desk.ledger.fetch(desk.client, Fetch(demand=(Request(65, 1, 0),), released=(64,)))
    assert split_completion(int(desk.arena.completions[0, 1]))[0] == 65
    assert select.select([desk.client.eventfd], [], [], 0)[0]
    assert desk.ledger.stats(desk.client)["host_hits"] == 1


def test_leases_a_client_wrongly_believes_in_are_named(desk: Desk) -> None:
    desk.ledger.greet(desk.client, (70, 71))
    (fault,) = desk.faults()
    assert (fault.kind, fault.tickets) == ("lease", (70, 71))


def test_the_words_of_a_former_client_say_nothing_to_its_successor_in_the_row(desk: Desk) -> None:
    desk.ledger.fetch(desk.client, Fetch(demand=(Request(64, 1, 0),)))
    fill = desk.ledger.take()
    assert fill
    desk.ledger.finish(fill)
    desk.ledger.remove(desk.client)
    other = desk.ledger.admit(os.getpid(), 1, -1)
    assert other.number == 0
    assert not desk.arena.completions[0].any() and not desk.arena.leases[0].any()


def test_a_process_that_took_over_a_dead_clients_pid_inherits_nothing(desk: Desk) -> None:
    desk.ledger.seat(desk.client)
    desk.ledger.fetch(desk.client, Fetch(demand=(Request(64, 1, 0),)))
    fill = desk.ledger.take()
    assert fill
    desk.ledger.finish(fill)
    desk.arena.clients[0, C_START_TIME] += np.uint64(1)
    successor = Ledger(desk.arena, STORE, NUM_KEYS)
    assert successor.clients() == []
    assert not desk.arena.leases[0].any()
    successor.close()


def test_quotas_never_promise_more_frames_than_there_are(desk: Desk) -> None:
    with pytest.raises(RefusedError, match="2 of 5 are not promised"):
        desk.ledger.admit(os.getpid(), 3, -1)
    other = desk.ledger.admit(os.getpid(), 2, -1)
    with pytest.raises(RefusedError, match="2 clients are in"):
        desk.ledger.admit(os.getpid(), 1, -1)
    desk.ledger.remove(other)


def test_the_row_of_another_process_cannot_be_resumed(desk: Desk) -> None:
    with pytest.raises(RefusedError, match="belongs to another process"):
        desk.ledger.admit(os.getppid(), 1, 0)
    with pytest.raises(RefusedError, match="no client number 7"):
        desk.ledger.admit(os.getpid(), 1, 7)


def test_closing_drops_what_still_waits_and_sends_the_readers_home(desk: Desk) -> None:
    desk.ledger.fetch(desk.client, Fetch(demand=(Request(64, 1, 0), Request(65, 2, 0))))
    fill = desk.ledger.take()
    assert fill
    desk.ledger.stop()
    assert desk.is_dropped(65) and not desk.is_dropped(64)
    assert desk.ledger.take() is None
    desk.ledger.finish(fill)
    assert split_completion(int(desk.arena.completions[0, 0]))[0] == 64


class Crash(Exception):
    """The loader died here."""


class Fuse:
    """Words of the arena that can be written only so many times: then the loader dies."""

    def __init__(self, words: "memoryview[int]", writes_left: list[int]) -> None:
        self._words = words
        self._writes_left = writes_left
        self.release = words.release

    def __getitem__(self, place: tuple[int, int]) -> int:
        return self._words[place]

    def __setitem__(self, place: tuple[int, int], word: int) -> None:
        if not self._writes_left[0]:
            raise Crash
        self._writes_left[0] -= 1
        self._words[place] = word


def run_until_crash(arena: Arena, num_writes: int, held: dict[int, int]) -> bool:
    """A client's short life on a loader that dies after `num_writes` words; `held` keeps its books."""
    ledger = Ledger(arena, STORE, NUM_KEYS)
    client = ledger.admit(os.getpid(), 2, -1)
    client.eventfd = os.eventfd(0)
    ledger.seat(client)
    ledger.greet(client, ())
    writes_left = [num_writes]
    for name in ("_frames", "_leases", "_completions"):
        setattr(ledger._frames, name, Fuse(getattr(ledger._frames, name), writes_left))
    try:
        for step, key in enumerate([0, 1, 0, 2, 3, 4, 2, 5, 0]):
            ticket = 64 + step
            released = tuple(list(held)[:1]) if len(held) == 2 else ()
            for one in released:
                del held[one]  # from here on the client does not rely on it
            ledger.fetch(client, Fetch(demand=(Request(ticket, key, 0),), released=released))
            if ledger._tickets.queue:
                fill = ledger.take()
                assert fill
                arena.frames[fill.frame] = key
                if step == 5:
                    ledger.fetch(client, Fetch(cancel=(ticket,)))
                    ledger.give_up(fill)
                else:
                    ledger.finish(fill)
            if step != 5:
                held[ticket] = key
    except Crash:
        word = int(arena.completions[0, ticket & 63])
        if word >> 40 == ticket and split_completion(word)[2] != DROPPED_FRAME:
            held[ticket] = key  # the client may have looked in the very last moment
        return True
    finally:
        ledger.close()
    return False


def test_a_crash_between_any_two_words_is_survived() -> None:
    """Everywhere the same: what was published and not released is kept, the rest is free again."""
    num_writes = 0
    is_crashing = True
    while is_crashing:
        fd = create_arena_fd(GEOMETRY)
        with Arena(fd, writable=True) as arena:
            held: dict[int, int] = {}
            is_crashing = run_until_crash(arena, num_writes, held)
            successor = Ledger(arena, STORE, NUM_KEYS)
            client = successor.admit(os.getpid(), 2, 0)
            successor.greet(client, held)
            assert successor.take_outbox().faults == []
            for ticket, key in held.items():
                frame = split_completion(int(arena.leases[0, ticket & 63]))[2]
                assert (arena.frames[frame] == key).all()
            for key in range(NUM_KEYS):
                frame_or_none = successor._frames.sealed_frame(key)
                assert frame_or_none is None or (arena.frames[frame_or_none] == key).all()
            stats = successor.stats(client)
            assert stats["frames_leased"] == len(set(held.values()))
            assert len(successor._frames._free) + stats["frames_sealed"] == GEOMETRY.num_frames
            successor.close()
        os.close(fd)
        num_writes += 1
    assert num_writes > 40
