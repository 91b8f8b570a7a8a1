"""A piece of host memory of our own that is page-locked, so that the device can reach it by itself."""

import mmap

import numpy as np
import numpy.typing as npt

from compute.transports.driver import Driver


class LockedMemory:
    """`bytes`, uint8 [num_bytes], zeroed and beginning at a page. Raises DriverError; then there is none."""

    def __init__(self, driver: Driver, num_bytes: int) -> None:
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(mmap.mmap(-1, num_bytes), np.uint8)
        self.address = int(self.bytes.ctypes.data)
        self._driver = driver
        driver.page_lock(self.address, num_bytes)
        self._is_locked = True

    def close(self) -> None:
        """The device must be done with it. The memory itself goes with its last view. Idempotent."""
        if self._is_locked:
            self._is_locked = False
            self._driver.page_unlock(self.address)
