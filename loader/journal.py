"""The journal of a conversion: which parts are on disk, so that an interrupted conversion goes on.

One line of JSON with the conversion's parameters, then a line for each finished part: `dense` or an
expert's key, and its xxh3_64. Knows no blobs: claims count only after they were compared with them.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

JOURNAL_FILE = "journal"

Parameters = Mapping[str, str | int | bool]


@dataclass(slots=True)
class Claims:
    """What a journal says: checksums of the dense weights (None: not written) and of experts 0, 1, 2, ..."""

    dense: int | None = None
    experts: list[int] = field(default_factory=list)


def read_claims(folder: Path, parameters: Parameters) -> Claims:
    """The claims in `folder`, none at all when they were made with other parameters.

    Reads up to the first line that makes no sense, such as one cut short by a crash.
    """
    claims = Claims()
    path = folder / JOURNAL_FILE
    if not path.is_file():
        return claims
    first, *lines = path.read_text(errors="replace").split("\n")
    if first != _heading(parameters):
        return claims
    for line in lines[:-1]:
        name, _, digits = line.partition(" ")
        try:
            checksum = int(digits, 16)
        except ValueError:
            break
        if name == "dense":
            claims.dense = checksum
        elif name == str(len(claims.experts)):
            claims.experts.append(checksum)
        else:
            break
    return claims


class Journal:
    """A journal that is being written."""

    def __init__(
        self, folder: Path, parameters: Parameters, dense: int | None, experts: Sequence[int]
    ) -> None:
        """Begin anew with what was found true; the old journal is replaced in one step."""
        self.claims = Claims()
        temporary = folder / (JOURNAL_FILE + ".tmp")
        self._file = temporary.open("w")
        self._file.write(_heading(parameters) + "\n")
        if dense is not None:
            self.record_dense(dense)
        for checksum in experts:
            self.record_expert(checksum)
        self.sync()
        temporary.rename(folder / JOURNAL_FILE)

    def close(self) -> None:
        """Idempotent."""
        self._file.close()

    def record_dense(self, checksum: int) -> None:
        """The dense weights are written."""
        self._append("dense", checksum)
        self.claims.dense = checksum

    def record_expert(self, checksum: int) -> None:
        """The next expert is written."""
        self._append(str(len(self.claims.experts)), checksum)
        self.claims.experts.append(checksum)

    def sync(self) -> None:
        """Make what was recorded survive a power cut."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def _append(self, name: str, checksum: int) -> None:
        self._file.write(f"{name} {checksum:016x}\n")
        self._file.flush()


def _heading(parameters: Parameters) -> str:
    return json.dumps(dict(parameters), sort_keys=True)
