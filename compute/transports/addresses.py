"""Addresses: where the leased frames behind many slots lie, and whether they still are what was leased.

Knows frames of one arena at a time, the current one; asked about a slot whose frame is in a former
one it has no answer. Knows nothing of tickets.
"""

import numpy as np

from compute.arrays import IntArray
from compute.ledger import Completion
from protocol.arena import F_GENERATION, FRAME_WORDS, GENERATION_MASK, Arena

_NEVER = -1


class FrameAddresses:
    """The frames of slots `0 .. num_slots - 1`."""

    def __init__(self, num_slots: int) -> None:
        self._arena: Arena | None = None
        #: the arena's frame table, word by word; by slot: its generation's place there, and what stood there
        self._words: IntArray = np.zeros(1, np.int64)
        self._place: IntArray = np.zeros(num_slots, np.int64)
        self._generation: IntArray = np.full(num_slots, _NEVER, np.int64)
        self._address: IntArray = np.zeros(num_slots, np.int64)

    def note(self, slot: int, completion: Completion) -> None:
        """`slot` is full: its bytes are the completion's frame."""
        arena = completion.arena
        if arena is not self._arena:
            self._enter(arena)
        place = completion.frame * FRAME_WORDS + F_GENERATION
        word = int(self._words[place])
        is_leased = word & GENERATION_MASK == completion.generation and word % 2 == 0
        self._place[slot] = place
        self._generation[slot] = word if is_leased else _NEVER
        self._address[slot] = arena.frames.ctypes.data + completion.frame * arena.geometry.frame_bytes

    def of(self, slots: IntArray) -> IntArray | None:
        """One address for each of some full slots; None when a frame is in a former arena, or has changed."""
        words = self._words.take(self._place.take(slots))
        if words.tobytes() != self._generation.take(slots).tobytes():
            return None
        return self._address.take(slots)

    def _enter(self, arena: Arena) -> None:
        """From now on frames are `arena`'s; slots that were noted before are elsewhere."""
        self._arena = arena
        self._words = arena.frame_table.view(np.int64).reshape(-1)
        self._place.fill(0)
        self._generation.fill(_NEVER)
