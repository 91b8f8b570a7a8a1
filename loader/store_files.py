"""The shards of one store, open for reading: an expert's bytes go into a frame and are checked there.

Knows files and checksums; no tickets, no threads. Any number of threads may read at once.
"""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from protocol.errors import StoreError
from protocol.manifest import Manifest
from protocol.messages import ExpertId

Bytes = npt.NDArray[np.uint8]


class ChecksumError(StoreError):
    """The bytes were read, but they are not the expert's."""


class StoreFiles:
    """The open shards of one store."""

    def __init__(self, folder: Path, manifest: Manifest, verify: bool, *, is_direct: bool = False) -> None:
        """Open every shard. `verify`: compare each blob with its checksum. Raises OSError.

        `is_direct`: past the page cache; frames must begin at whole pages (see loader.direct_io).
        """
        self._folder = folder
        self._manifest = manifest
        self._verify = verify
        self._stride = manifest.layout.stride
        self._fds: list[int] = []
        self._place_of: list[tuple[int, int]] = []  # by key: (shard, offset)
        flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if is_direct else 0)
        try:
            for number, shard in enumerate(manifest.shards):
                self._fds.append(os.open(folder / shard.file, flags))
                offsets = range(shard.num_experts)
                self._place_of += [(number, shard.data_offset + n * self._stride) for n in offsets]
        except BaseException:
            self.close()
            raise

    def read(self, key: int, frame: Bytes) -> None:
        """Fill `frame` (uint8 [stride]) with expert `key`. Raises StoreError naming file and expert."""
        shard, offset = self._place_of[key]
        view = frame.data
        done = 0
        try:
            while done < self._stride:
                count = os.preadv(self._fds[shard], [view[done:]], offset + done)
                if not count:
                    raise StoreError(f"{self._name(key)} is truncated: convert again")
                done += count
        except OSError as error:
            raise StoreError(f"{self._name(key)} cannot be read ({error.strerror})") from error
        if self._verify and xxhash.xxh3_64_intdigest(view) != self._manifest.checksums[key]:
            raise ChecksumError(
                f"{self._name(key)} is damaged: its bytes do not match their checksum, convert again"
            )

    def close(self) -> None:
        """Close every shard. Idempotent."""
        while self._fds:
            os.close(self._fds.pop())

    def _name(self, key: int) -> str:
        layer, expert = ExpertId.from_key(key, self._manifest.num_experts)
        file = self._folder / self._manifest.shards[self._place_of[key][0]].file
        return f"expert {expert} of layer {layer} in {os.fsencode(file).decode(errors='replace')}"
