"""Slot table: the slot of every resident expert in one array, so that a token's experts are one look.

Written by the residency at the two edges of an expert's stay; grows with the keys that it meets.
"""

import numpy as np

from compute.arrays import IntArray

_NOBODY = -1


class SlotTable:
    """Slots by key. The array's last cell stays empty: it answers for every key beyond."""

    __slots__ = ("_slot_of",)

    def __init__(self) -> None:
        self._slot_of: IntArray = np.full(1, _NOBODY, np.int64)

    def enter(self, key: int, slot: int) -> None:
        """`key` is resident in `slot` from now on."""
        if key >= len(self._slot_of) - 1:
            grown = np.full(2 * key + 2, _NOBODY, np.int64)
            grown[: len(self._slot_of)] = self._slot_of
            self._slot_of = grown
        self._slot_of[key] = slot

    def leave(self, key: int) -> None:
        """`key` is resident no longer."""
        self._slot_of[key] = _NOBODY

    def find(self, keys: IntArray) -> IntArray | None:
        """The slots of `keys`, in their order; None unless all are resident."""
        slots: IntArray = self._slot_of.take(keys, mode="clip")
        return None if _NOBODY in slots.tolist() else slots
