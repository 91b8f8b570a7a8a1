"""The arena: its geometry, its seals, and who may write."""

import fcntl
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.arena import (
    DROPPED_FRAME,
    H_NUM_FRAMES,
    Arena,
    ArenaGeometry,
    completion_word,
    create_arena_fd,
    split_completion,
)
from protocol.errors import MemoryBudgetError, ProtocolError

GEOMETRY = ArenaGeometry(num_frames=5, frame_bytes=8192, num_clients=3, num_tickets=64)


@pytest.fixture
def arena_fd() -> Iterator[int]:
    fd = create_arena_fd(GEOMETRY)
    yield fd
    os.close(fd)


def test_a_client_reads_the_geometry_from_the_header(arena_fd: int) -> None:
    with Arena(arena_fd, writable=False) as arena:
        assert arena.geometry == GEOMETRY
        assert arena.frames.shape == (5, 8192)
        assert arena.completions.shape == (3, 64)


def test_sections_do_not_overlap_and_frames_are_page_aligned() -> None:
    g = GEOMETRY
    starts = [g.clients_offset, g.leases_offset, g.completions_offset, g.frame_table_offset, g.frames_offset]
    assert starts == sorted(set(starts))
    assert all(start % 4096 == 0 for start in starts)


def test_words_written_in_one_mapping_are_seen_in_another(arena_fd: int) -> None:
    with Arena(arena_fd, writable=True) as ours, Arena(arena_fd, writable=False) as theirs:
        ours.completions[2, 63] = 2**64 - 1
        ours.leases[1, 0] = 7
        ours.frames[4, 8191] = 9
        assert int(theirs.completions[2, 63]) == 2**64 - 1
        assert int(theirs.leases[1, 0]) == 7
        assert theirs.frames[4, 8191] == 9


def test_a_read_only_mapping_cannot_be_written(arena_fd: int) -> None:
    with Arena(arena_fd, writable=False) as arena, pytest.raises(ValueError):
        arena.frames[0, 0] = 1


def test_nobody_can_shrink_or_grow_the_arena(arena_fd: int) -> None:
    for size in (4096, GEOMETRY.total_bytes + 4096):
        with pytest.raises(PermissionError):
            os.ftruncate(arena_fd, size)
    seals = fcntl.fcntl(arena_fd, fcntl.F_GET_SEALS)
    assert seals & fcntl.F_SEAL_SHRINK and seals & fcntl.F_SEAL_GROW


def test_populate_takes_every_page(arena_fd: int) -> None:
    assert os.fstat(arena_fd).st_blocks * 512 < GEOMETRY.total_bytes
    with Arena(arena_fd, writable=True) as arena:
        arena.populate()
    assert os.fstat(arena_fd).st_blocks * 512 >= GEOMETRY.total_bytes


def test_an_arena_larger_than_the_free_memory_is_refused() -> None:
    with pytest.raises(MemoryBudgetError, match="--ram"):
        create_arena_fd(ArenaGeometry.for_frames(2**19, 2**30))


@pytest.mark.parametrize(
    "sizes",
    [
        (0, 4096, 1, 64),
        (1, 100, 1, 64),
        (1, 0, 1, 64),
        (1, 4096, 65, 64),
        (1, 4096, 1, 63),
        (1 << 20, 4096, 1, 64),
    ],
)
def test_impossible_geometries_are_refused(sizes: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError):
        ArenaGeometry(*sizes)


def test_a_file_that_is_no_arena_is_refused() -> None:
    fd = os.memfd_create("foreign")
    try:
        os.ftruncate(fd, GEOMETRY.total_bytes)
        with pytest.raises(ProtocolError, match="not a sidestage arena"):
            Arena(fd, writable=False)
    finally:
        os.close(fd)


def test_a_header_that_lies_about_the_size_is_refused(arena_fd: int) -> None:
    with Arena(arena_fd, writable=True) as arena:
        arena.header[H_NUM_FRAMES] = 2**18
    with pytest.raises(ProtocolError, match="its header says"):
        Arena(arena_fd, writable=False)


@given(st.integers(0, 2**24 - 1), st.integers(0, 2**40), st.integers(0, DROPPED_FRAME))
def test_a_completion_word_keeps_ticket_generation_and_frame(
    ticket: int, generation: int, frame: int
) -> None:
    word = completion_word(ticket, generation, frame)
    assert 0 <= word < 2**64
    assert split_completion(word) == (ticket, generation % 2**20, frame)


@given(st.integers(1, 10_000))
def test_one_client_can_hold_every_frame_and_await_as_many(num_frames: int) -> None:
    assert ArenaGeometry.for_frames(num_frames, 4096).num_tickets >= 2 * num_frames
