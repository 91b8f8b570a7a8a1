"""The mailbox, read: what the device did in a layer-step, once all words of it are there."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compute.beside.words import FOUND_SHIFT, MAX_EXPERTS, PAYLOAD_MASK, TAG_MASK, DeviceWords


@dataclass(frozen=True, slots=True)
class Posted:
    """A layer-step: its `epoch` (modulo 2^32), (expert, how it was found) of each row, predicted experts."""

    epoch: int
    found: list[tuple[int, int]]
    predicted: npt.NDArray[np.int64]


class Mailbox:
    """Never waits. A step's row is overwritten `num_cells` steps later."""

    def __init__(self, words: DeviceWords) -> None:
        self._cells: npt.NDArray[np.int64] = words.mailbox.numpy()

    @property
    def num_cells(self) -> int:
        return len(self._cells)

    def read(self, step: int, num_rows: int, num_predicted: int) -> Posted | None:
        """What was posted for `step`; None while a word of it is missing."""
        cell = self._cells[step % len(self._cells), : 1 + num_rows + num_predicted].copy()
        if ((cell >> 32) != step & TAG_MASK).any():
            return None
        payload = cell & PAYLOAD_MASK
        rows = payload[1 : 1 + num_rows].tolist()
        found = [(word & (MAX_EXPERTS - 1), word >> FOUND_SHIFT) for word in rows]
        return Posted(int(payload[0]), found, payload[1 + num_rows :])
