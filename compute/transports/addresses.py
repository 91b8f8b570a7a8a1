"""Addresses: where the leased frames behind many slots lie, and whether they still are what was leased.

Knows frames of one arena at a time, the current one; asked about a slot whose frame is in a former
one it has no answer. Knows nothing of tickets.
"""

import numpy as np
import numpy.typing as npt

from compute.ledger import Completion
from protocol.arena import F_GENERATION, GENERATION_MASK, Arena

IntArray = npt.NDArray[np.int64]

_ELSEWHERE = -1


class FrameAddresses:
    """The frames of slots `0 .. num_slots - 1`."""

    def __init__(self, num_slots: int) -> None:
        self._arena: Arena | None = None
        self._frame: IntArray = np.full(num_slots, _ELSEWHERE, np.int64)
        self._generation: IntArray = np.zeros(num_slots, np.int64)
        self._generations: IntArray = np.zeros(0, np.int64)
        self._first = self._frame_bytes = 0

    def note(self, slot: int, completion: Completion) -> None:
        """`slot` is full: its bytes are the completion's frame."""
        if completion.arena is not self._arena:
            self._enter(completion.arena)
        self._frame[slot] = completion.frame
        is_whole = completion.generation % 2 == 0
        self._generation[slot] = completion.generation if is_whole else _ELSEWHERE

    def of(self, slots: IntArray) -> IntArray | None:
        """One address for each of some full slots; None when a frame is in a former arena, or has changed."""
        frames = self._frame[slots]
        found = self._generations.take(frames, mode="clip") & GENERATION_MASK
        if (found != self._generation[slots]).any():
            return None
        addresses: IntArray = frames * self._frame_bytes + self._first
        return addresses

    def _enter(self, arena: Arena) -> None:
        """From now on frames are `arena`'s; slots that were noted before are elsewhere."""
        self._arena = arena
        self._frame.fill(_ELSEWHERE)
        self._generation.fill(_ELSEWHERE)
        self._generations = arena.frame_table.view(np.int64)[:, F_GENERATION]
        self._first, self._frame_bytes = arena.frames.ctypes.data, arena.geometry.frame_bytes
