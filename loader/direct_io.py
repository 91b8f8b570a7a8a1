"""How a store is read: past the page cache, straight into the frame (O_DIRECT), or through the page cache.

The page cache pays where memory beside the arena holds the whole store: each expert comes from disk
once. Where it does not, the page cache costs more than twice the processor time of a direct read, and
pushes out what other programs need for experts that the arena holds as well.
"""

import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from protocol.blob import BLOB_ALIGNMENT
from protocol.errors import StoreError
from protocol.manifest import Manifest
from protocol.units import format_size

CHOICES = ("auto", "on", "off")


@dataclass(frozen=True, slots=True)
class Reading:
    """What was chosen, and why."""

    is_direct: bool
    reason: str

    @property
    def words(self) -> str:
        """As in "straight from disk (asked for)"."""
        return f"{'straight from disk' if self.is_direct else 'through the page cache'} ({self.reason})"


def check_choice(asked: str) -> None:
    """Raise ValueError for what is no choice."""
    if asked not in CHOICES:
        raise ValueError(f"--direct-io is {asked!r}; allowed: {', '.join(CHOICES)}")


def choose_reading(asked: str, store_bytes: int, spare_bytes: int, obstacle: str) -> Reading:
    """`spare_bytes`: memory left beside the arena; `obstacle`: why the store has no direct reads, or "".

    Raises StoreError when they are asked for and cannot be.
    """
    if asked == "off":
        return Reading(False, "asked for")
    if obstacle and asked == "on":
        raise StoreError(f"--direct-io on: {obstacle}; pass auto or off")
    if obstacle:
        return Reading(False, obstacle)
    if asked == "on":
        return Reading(True, "asked for")
    memory, store = format_size(spare_bytes), format_size(store_bytes)
    if store_bytes <= spare_bytes:
        return Reading(False, f"{memory} of memory are left for a store of {store}")
    return Reading(True, f"{memory} of memory are left, the store has {store}")


def find_obstacle(folder: Path, manifest: Manifest) -> str:
    """Why the store in `folder` cannot be read directly; "" when it can. Blobs lie in whole pages anyway."""
    shard = manifest.shards[0]
    return obstacle_in(folder / shard.file, shard.data_offset)


def obstacle_in(file: Path, offset: int = 0) -> str:
    """Why the page at `offset` cannot be read directly; "" when it can."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        try:
            with mmap.mmap(-1, BLOB_ALIGNMENT) as page:
                os.preadv(fd, [page], offset)
        finally:
            os.close(fd)
    except OSError as error:
        return f"its file system has no direct reads ({error.strerror})"
    return ""
