"""Driver: the few things that a transport asks of a device, and nothing else.

One copy stream, first in, first out; compute's own stream, which this never waits for on the
host; memory that the device may read by itself. `cuda_driver` has the real one.
"""

from typing import Protocol

import torch

from protocol.errors import SidestageError


class DriverError(SidestageError):
    """The device's driver refused; the text has its own words."""


class Event(Protocol):
    """A point on a stream."""

    def is_done(self) -> bool:
        """Whether everything before the point has happened. Never blocks; raises what befell the device."""


class Driver(Protocol):
    """One device. Any thread may call it; a call returns before the device has done anything."""

    #: where the slots, and the model, are
    device: torch.device
    #: what the user knows the device by
    name: str

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        """On the copy stream: host memory at `source` to device memory at `target`."""

    def mark_copies(self) -> Event:
        """The copy stream as it is now."""

    def mark_uses(self) -> Event:
        """Everything that compute has launched so far, on whichever stream."""

    def hold_copies(self, until: Event) -> None:
        """What is put on the copy stream from now on waits for `until`."""

    def elapsed_ns(self, start: Event, end: Event) -> int:
        """The device's time between two marks of the copy stream; both are done."""

    def page_lock(self, address: int, num_bytes: int) -> None:
        """Let the device read this host memory by itself. Raises DriverError; then nothing has changed."""

    def page_unlock(self, address: int) -> None:
        """Undo `page_lock`. Raises DriverError."""

    def reads_in_place(self) -> bool:
        """Whether a kernel may read page-locked memory at the host's own addresses."""

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the device."""
