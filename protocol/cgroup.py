"""How much memory the control groups of this process leave it: a container's limit, version 1 or 2.

Page cache that the kernel can drop at once (inactive files) counts as free, as it does in
MemAvailable. Knows the files of the kernel's interface, and nothing of who set the limits.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Version 1 has no word for "no limit", only a number near 2**63.
_NO_LIMIT = 2**60


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """One group with a limit, in bytes."""

    folder: Path
    limit_bytes: int
    rest_bytes: int


@dataclass(frozen=True, slots=True)
class _Version:
    """Where a version of the interface keeps what."""

    mount: str
    limit: str
    usage: str
    droppable: str


_V1 = _Version(
    "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
)
_V2 = _Version("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")


def tightest_memory_group(root: Path = Path("/")) -> MemoryGroup | None:
    """Of this process's groups and their parents the one with the least memory left; None: no limit."""
    found = [group for version, path in _memberships(root) for group in _limits(root, version, path)]
    return min(found, key=lambda group: group.rest_bytes, default=None)


def _memberships(root: Path) -> Iterator[tuple[_Version, str]]:
    """Which group this process is in, by /proc/self/cgroup: lines of `number:controllers:path`."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield _V2, path
            elif "memory" in controllers.split(","):
                yield _V1, path


def _limits(root: Path, version: _Version, path: str) -> Iterator[MemoryGroup]:
    """The group and its parents, as far as they can be seen: a container sees its own as the topmost."""
    mount = root / version.mount
    group = Path(path.lstrip("/"))
    for folder in {mount / group, *(mount / parent for parent in group.parents), mount}:
        with contextlib.suppress(OSError, ValueError):
            limit = int((folder / version.limit).read_text())
            if limit < _NO_LIMIT:
                used = int((folder / version.usage).read_text()) - _droppable_bytes(folder, version)
                yield MemoryGroup(folder, limit, max(limit - used, 0))


def _droppable_bytes(folder: Path, version: _Version) -> int:
    with contextlib.suppress(OSError):
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == version.droppable:
                return int(value)
    return 0
