"""A ring of page-locked cells, for chunks out of frames that are not page-locked.

As many cells as chunks may be on their way: when the next one is put, the oldest has crossed.
"""

from itertools import cycle

import numpy as np
import numpy.typing as npt

from compute.transports.driver import Driver
from compute.transports.locked_memory import LockedMemory


class LockedRing:
    """`num_cells` of `cell_bytes`. Raises DriverError when not even they can be page-locked."""

    def __init__(self, driver: Driver, num_cells: int, cell_bytes: int) -> None:
        self._memory = LockedMemory(driver, num_cells * cell_bytes)
        self._cells = cycle(range(0, num_cells * cell_bytes, cell_bytes))

    def put(self, source: npt.NDArray[np.uint8]) -> int:
        """Copy `source`, at most a cell of bytes, into the next cell; returns its address."""
        start = next(self._cells)
        np.copyto(self._memory.bytes[start : start + len(source)], source)
        return self._memory.address + start

    def close(self) -> None:
        """Nothing may be on its way out of a cell."""
        self._memory.close()
