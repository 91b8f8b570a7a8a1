"""The frame table: no frame is refilled under a lease, and a crash at any moment is survived."""

import os
from collections.abc import Iterator

import numpy as np
import pytest

from loader.frames import FrameTable
from loader.queue import TicketId
from protocol.arena import F_GENERATION, H_EPOCH, Arena, ArenaGeometry, create_arena_fd, split_completion
from protocol.errors import StoreError

STORE = "ab" * 16
GEOMETRY = ArenaGeometry(num_frames=3, frame_bytes=4096, num_clients=2, num_tickets=64)


@pytest.fixture
def arena() -> Iterator[Arena]:
    fd = create_arena_fd(GEOMETRY)
    with Arena(fd, writable=True) as arena:
        yield arena
        while TABLES:
            TABLES.pop().close()
    os.close(fd)


TABLES: list[FrameTable] = []


def take_over(arena: Arena, *living: int) -> FrameTable:
    TABLES.append(FrameTable(arena, STORE))
    TABLES[-1].recover(living)
    return TABLES[-1]


def ticket(number: int, client: int = 0) -> TicketId:
    return TicketId(client, 64 + number)


def fill(table: FrameTable, key: int, *tickets: TicketId) -> int:
    frame = table.begin_fill(key, tickets)
    table.seal(frame)
    for one in tickets:
        table.publish(one)
    return frame


def test_a_filled_frame_is_published_under_its_ticket_and_generation(arena: Arena) -> None:
    table = take_over(arena)
    frame = table.begin_fill(7, [ticket(1)])
    assert table.sealed_frame(7) is None
    assert int(arena.frame_table[frame, F_GENERATION]) % 2 == 1
    table.seal(frame)
    word = table.publish(ticket(1))
    assert split_completion(word) == (65, int(arena.frame_table[frame, F_GENERATION]), frame)
    assert int(arena.completions[0, 1]) == word == int(arena.leases[0, 1])
    assert table.sealed_frame(7) == frame


def test_generations_grow_with_every_fill(arena: Arena) -> None:
    table = take_over(arena)
    generations = []
    for key in range(9):
        frame = fill(table, key, ticket(key))
        table.release(ticket(key))
        generations.append((frame, int(arena.frame_table[frame, F_GENERATION])))
    for frame in range(3):
        of_frame = [generation for f, generation in generations if f == frame]
        assert of_frame == sorted(set(of_frame)) and all(g % 2 == 0 for g in of_frame)


def test_a_leased_frame_is_never_refilled(arena: Arena) -> None:
    table = take_over(arena)
    held = fill(table, 0, ticket(0))
    for key in range(1, 7):
        assert fill(table, key, ticket(key)) != held
        table.release(ticket(key))
    assert table.sealed_frame(0) == held


def test_a_frame_leased_from_the_host_cache_is_not_refilled(arena: Arena) -> None:
    table = take_over(arena)
    frames = [fill(table, key, ticket(key)) for key in range(3)]
    for key in range(3):
        table.release(ticket(key))
    table.lease(ticket(10), frames[0])
    for key in range(4, 9):
        assert fill(table, key, ticket(key)) != frames[0]
        table.release(ticket(key))


def test_there_is_no_room_while_every_frame_is_leased(arena: Arena) -> None:
    table = take_over(arena)
    for key in range(3):
        fill(table, key, ticket(key))
    assert not table.has_room and table.num_leased == 3
    assert table.release(ticket(1))
    assert table.has_room and table.num_leased == 2


def test_a_frame_stays_leased_until_the_last_of_its_leases_is_released(arena: Arena) -> None:
    table = take_over(arena)
    frame = fill(table, 5, ticket(1), ticket(1, client=1))
    table.lease(ticket(2), frame)
    for one in (ticket(1), ticket(2)):
        table.release(one)
        assert table.num_leased == 1
    table.release(ticket(1, client=1))
    assert table.num_leased == 0 and table.sealed_frame(5) == frame


def test_the_least_recently_released_frame_is_refilled_first(arena: Arena) -> None:
    table = take_over(arena)
    for key in range(3):
        fill(table, key, ticket(key))
    for number in (1, 0, 2):
        table.release(ticket(number))
    fill(table, 10, ticket(10))
    assert [table.sealed_frame(key) is None for key in (0, 1, 2)] == [False, True, False]


def test_a_notice_of_eviction_refreshes_an_unleased_frame(arena: Arena) -> None:
    table = take_over(arena)
    for key in range(3):
        fill(table, key, ticket(key))
        table.release(ticket(key))
    table.touch(0)
    table.touch(99)
    fill(table, 10, ticket(10))
    assert table.sealed_frame(0) is not None and table.sealed_frame(1) is None


def test_an_abandoned_fill_leaves_a_free_frame(arena: Arena) -> None:
    table = take_over(arena)
    frame = table.begin_fill(4, [ticket(1)])
    table.release(ticket(1))
    table.abandon(frame)
    assert table.sealed_frame(4) is None and table.num_sealed == 0
    assert fill(table, 5, ticket(2)) == frame


def test_releasing_twice_or_under_another_number_changes_nothing(arena: Arena) -> None:
    table = take_over(arena)
    fill(table, 4, ticket(1))
    assert not table.release(TicketId(0, 64 + 64 + 1))
    assert table.release(ticket(1))
    assert not table.release(ticket(1))
    assert table.num_leased == 0


def test_every_take_over_begins_a_new_epoch(arena: Arena) -> None:
    assert take_over(arena).epoch == 1
    assert take_over(arena).epoch == 2 == int(arena.header[H_EPOCH])


def test_published_leases_of_the_living_survive_a_crash(arena: Arena) -> None:
    frame = fill(take_over(arena), 4, ticket(1), ticket(2, client=1))
    table = take_over(arena, 0, 1)
    assert table.sealed_frame(4) == frame and table.num_leased == 1
    assert table.leased_tickets(0) == [65] and table.leased_tickets(1) == [66]
    for key in range(5, 9):
        assert fill(table, key, ticket(key)) != frame
        table.release(ticket(key))


def test_leases_of_the_dead_come_back_and_their_words_are_blank(arena: Arena) -> None:
    fill(take_over(arena), 4, ticket(1), ticket(2, client=1))
    table = take_over(arena, 1)
    assert table.leased_tickets(0) == [] and table.leased_tickets(1) == [66]
    assert not arena.completions[0].any()


def test_a_fill_that_a_crash_interrupted_is_free_and_its_leases_are_gone(arena: Arena) -> None:
    before = take_over(arena)
    frame = before.begin_fill(4, [ticket(1)])
    generation = int(arena.frame_table[frame, F_GENERATION])
    table = take_over(arena, 0)
    assert table.sealed_frame(4) is None and table.leased_tickets(0) == []
    assert int(arena.frame_table[frame, F_GENERATION]) == generation + 1
    assert not table.is_published(ticket(1))
    assert fill(table, 5, ticket(1)) == frame
    assert int(arena.frame_table[frame, F_GENERATION]) > generation + 1


def test_a_lease_that_was_granted_but_not_published_comes_back_and_the_frame_stays(arena: Arena) -> None:
    before = take_over(arena)
    frame = before.begin_fill(4, [ticket(1)])
    before.seal(frame)
    table = take_over(arena, 0)
    assert table.leased_tickets(0) == [] and table.num_leased == 0
    assert table.sealed_frame(4) == frame


def test_unleased_sealed_frames_are_the_host_cache_of_the_successor(arena: Arena) -> None:
    before = take_over(arena)
    frame = fill(before, 4, ticket(1))
    before.release(ticket(1))
    table = take_over(arena, 0)
    assert table.sealed_frame(4) == frame and table.has_room and table.num_sealed == 1


def test_a_lease_on_a_frame_of_another_generation_is_not_believed(arena: Arena) -> None:
    frame = fill(take_over(arena), 4, ticket(1))
    arena.frame_table[frame, F_GENERATION] += np.uint64(2)
    table = take_over(arena, 0)
    assert table.leased_tickets(0) == [] and table.num_leased == 0


def test_an_arena_of_another_store_is_refused(arena: Arena) -> None:
    take_over(arena)
    with pytest.raises(StoreError, match="another store"):
        FrameTable(arena, "cd" * 16)
