"""A ring of page-locked cells, for chunks out of frames that are not page-locked.

As many cells as chunks may be on their way: when the next one is put, the oldest has crossed.
"""

import mmap
from itertools import cycle

import numpy as np
import numpy.typing as npt

from compute.transports.driver import Driver


class LockedRing:
    """`num_cells` of `cell_bytes`. Raises DriverError when not even they can be page-locked."""

    def __init__(self, driver: Driver, num_cells: int, cell_bytes: int) -> None:
        self._driver = driver
        self._memory = np.frombuffer(mmap.mmap(-1, num_cells * cell_bytes), np.uint8)
        self._address = int(self._memory.ctypes.data)
        driver.page_lock(self._address, len(self._memory))
        self._cells = cycle(range(0, num_cells * cell_bytes, cell_bytes))

    def put(self, source: npt.NDArray[np.uint8]) -> int:
        """Copy `source`, at most a cell of bytes, into the next cell; returns its address."""
        start = next(self._cells)
        np.copyto(self._memory[start : start + len(source)], source)
        return self._address + start

    def close(self) -> None:
        """Nothing may be on its way out of a cell."""
        self._driver.page_unlock(self._address)
