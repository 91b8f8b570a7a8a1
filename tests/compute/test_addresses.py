"""Addresses of leased frames: one look for many slots, and none for bytes that are not the leased ones."""

import os
from collections.abc import Iterator

import numpy as np
import pytest

from compute.ledger import Completion
from compute.transports.addresses import FrameAddresses
from protocol.arena import F_GENERATION, Arena, ArenaGeometry, create_arena_fd

FRAME_BYTES = 4096


@pytest.fixture
def arenas() -> Iterator[tuple[Arena, Arena]]:
    fds = [create_arena_fd(ArenaGeometry.for_frames(4, FRAME_BYTES)) for _ in range(2)]
    first, second = (Arena(fd, writable=True) for fd in fds)
    for arena in (first, second):
        arena.frame_table[:, F_GENERATION] = [2, 4, 6, 8]
    yield first, second
    for arena in (first, second):
        arena.close()
    for fd in fds:
        os.close(fd)


def test_each_slot_s_frame_is_where_it_says(arenas: tuple[Arena, Arena]) -> None:
    addresses = FrameAddresses(6)
    addresses.note(5, Completion(1, 3, 8, arenas[0]))
    addresses.note(0, Completion(2, 1, 4, arenas[0]))
    found = addresses.of(np.array([5, 0]))
    assert found is not None
    assert found.tolist() == [arenas[0].frames[frame].ctypes.data for frame in (3, 1)]


def test_a_frame_that_has_changed_has_no_address(arenas: tuple[Arena, Arena]) -> None:
    addresses = FrameAddresses(6)
    addresses.note(5, Completion(1, 3, 8, arenas[0]))
    arenas[0].frame_table[3, F_GENERATION] = 9
    assert addresses.of(np.array([5])) is None


def test_a_frame_that_was_being_filled_has_no_address(arenas: tuple[Arena, Arena]) -> None:
    addresses = FrameAddresses(6)
    arenas[0].frame_table[3, F_GENERATION] = 9
    addresses.note(5, Completion(1, 3, 9, arenas[0]))
    assert addresses.of(np.array([5])) is None


def test_frames_of_a_former_arena_are_not_answered_for(arenas: tuple[Arena, Arena]) -> None:
    addresses = FrameAddresses(6)
    addresses.note(5, Completion(1, 0, 2, arenas[0]))
    addresses.note(0, Completion(2, 1, 4, arenas[1]))
    assert addresses.of(np.array([5, 0])) is None
    assert addresses.of(np.array([0])) is not None
