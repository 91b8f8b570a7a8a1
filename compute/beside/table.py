"""The slot table that the device reads: where every expert's bytes are, slot or frame, at any time.

Written by the residency at the two edges of an expert's stay, like the table that it extends: an
expert enters when its bytes are in the slot. Knows nothing of when a slot may be refilled.
"""

from torch import Tensor

from compute.arrays import IntArray
from compute.beside.words import EPOCH, IN_SLOT, DeviceWords
from compute.slot_table import SlotTable


class DeviceSlotTable(SlotTable):
    """`frames`: each expert's frame, by key, as addresses; slots are rows of `pool`, uint8 [n, stride]."""

    __slots__ = ("_control", "_first", "_frames", "_stride", "_table")

    def __init__(self, words: DeviceWords, frames: IntArray, pool: Tensor) -> None:
        super().__init__()
        self._table: IntArray = words.table.numpy()
        self._control: IntArray = words.control.numpy()
        self._frames = frames
        self._first, self._stride = pool.data_ptr(), pool.stride(0)
        self._table[:] = frames

    @property
    def epoch(self) -> int:
        """Raised with every expert that leaves: the steps after one that has read it go without them."""
        return int(self._control[EPOCH])

    def address_of(self, slot: int) -> int:
        return self._first + slot * self._stride

    def enter(self, key: int, slot: int) -> None:
        super().enter(key, slot)
        self._table[key] = self.address_of(slot) | IN_SLOT

    def leave(self, key: int) -> None:
        super().leave(key)
        self._table[key] = self._frames[key]
        self._control[EPOCH] += 1
