"""The words that host and device share: page-locked memory which the device reads and writes in place.

Owns their layout, nothing of their meaning in time. The host writes the table, the open slots and
the control words; the device writes the mailbox. Every word is int64 and is stored as one.

- table [num_keys]: where an expert's bytes are, its frame or its slot; bit 0 (IN_SLOT): it is a slot.
- control [2]: EPOCH, raised after words of the table were taken back; PUSHED, the number of open
  slots ever offered.
- opened [num_open]: addresses of open slots, a ring: the n-th that was offered is at n % num_open.
- mailbox [num_cells, width]: what the device did in layer-step s, in row s % num_cells. A word is
  tag(s) << 32 | payload; a row is whole when all its words carry the tag.
  Word 0: the epoch that the step has read. Words 1 to R: for each of the step's R routed rows
  expert | found << FOUND_SHIFT. The P words behind: predicted experts.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compute.transports.driver import Driver
from compute.transports.locked_memory import LockedMemory

IN_SLOT = 1
EPOCH, PUSHED = 0, 1

#: How the device found an expert: in its slot; not there, and read out of its frame; not there, and
#: brought into the next open slot; like an earlier row of the step; no expert of the layer at all.
RESIDENT, IN_PLACE, LANDED, REPEATED, UNKNOWN = range(5)
FOUND_SHIFT = 28
MAX_EXPERTS = 1 << FOUND_SHIFT
TAG_MASK = (1 << 31) - 1
PAYLOAD_MASK = (1 << 32) - 1

_PAGE = 4096
_WORD = 8


@dataclass(frozen=True, slots=True)
class DeviceWords:
    """Views of one piece of memory; see the module. All int64 on the CPU, and read by the device."""

    table: Tensor
    control: Tensor
    opened: Tensor
    mailbox: Tensor


@dataclass(frozen=True, slots=True)
class Extent:
    """How many words of each kind."""

    num_keys: int
    num_open: int
    num_cells: int
    width: int

    @property
    def num_words(self) -> int:
        return self.num_keys + 2 + self.num_open + self.num_cells * self.width


class SharedWords:
    """`words` until `close`: zeros, and a mailbox without a step. Raises DriverError."""

    def __init__(self, driver: Driver, extent: Extent) -> None:
        num_bytes = -(-extent.num_words * _WORD // _PAGE) * _PAGE
        self._memory = LockedMemory(driver, num_bytes)
        flat = torch.from_numpy(self._memory.bytes.view(np.int64))[: extent.num_words]
        sizes = [extent.num_keys, 2, extent.num_open, extent.num_cells * extent.width]
        table, control, opened, mailbox = torch.split(flat, sizes)
        mailbox.fill_(-1)
        self.words = DeviceWords(table, control, opened, mailbox.view(extent.num_cells, extent.width))

    def close(self) -> None:
        """The device must be done with them. Idempotent."""
        self._memory.close()
