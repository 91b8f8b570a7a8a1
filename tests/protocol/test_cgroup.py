"""A container's memory limit is seen in either version of the kernel's interface."""

from pathlib import Path

from protocol.arena import available_memory_bytes
from protocol.cgroup import tightest_memory_group

MIB = 2**20


def _write(root: Path, path: str, text: str | int) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def _group(root: Path, folder: str, limit: str | int, used: int, droppable: int) -> None:
    version_1 = folder.startswith("sys/fs/cgroup/memory")
    names = ("limit_in_bytes", "usage_in_bytes") if version_1 else ("max", "current")
    for name, value in zip(names, (limit, used), strict=True):
        _write(root, f"{folder}/memory.{name}", value)
    prefix = "total_" if version_1 else ""
    _write(root, f"{folder}/memory.stat", f"anon 1\n{prefix}inactive_file {droppable}\nshmem 2")


def test_the_group_of_version_2_and_its_parents_are_looked_at(tmp_path: Path) -> None:
    _write(tmp_path, "proc/self/cgroup", "0::/jobs/one")
    _group(tmp_path, "sys/fs/cgroup/jobs/one", "max", 5 * MIB, 0)
    _group(tmp_path, "sys/fs/cgroup/jobs", 100 * MIB, 60 * MIB, 10 * MIB)
    group = tightest_memory_group(tmp_path)
    assert group is not None
    assert (group.folder.name, group.limit_bytes, group.rest_bytes) == ("jobs", 100 * MIB, 50 * MIB)


def test_the_tighter_of_two_limits_counts(tmp_path: Path) -> None:
    _write(tmp_path, "proc/self/cgroup", "0::/jobs/one")
    _group(tmp_path, "sys/fs/cgroup/jobs/one", 20 * MIB, 5 * MIB, 0)
    _group(tmp_path, "sys/fs/cgroup/jobs", 100 * MIB, 60 * MIB, 0)
    group = tightest_memory_group(tmp_path)
    assert group is not None
    assert group.rest_bytes == 15 * MIB


def test_a_limit_of_version_1_is_seen_from_within_a_container(tmp_path: Path) -> None:
    _write(tmp_path, "proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/docker/abc\n0::/")
    _group(tmp_path, "sys/fs/cgroup/memory", 50 * MIB, 30 * MIB, 5 * MIB)
    group = tightest_memory_group(tmp_path)
    assert group is not None
    assert group.rest_bytes == 25 * MIB


def test_no_limit_is_no_limit_in_either_version(tmp_path: Path) -> None:
    _write(tmp_path, "proc/self/cgroup", "4:memory:/a\n0::/")
    _group(tmp_path, "sys/fs/cgroup/memory/a", 9223372036854771712, 5, 0)
    _group(tmp_path, "sys/fs/cgroup", "max", 5, 0)
    assert tightest_memory_group(tmp_path) is None


def test_a_group_that_is_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    _write(tmp_path, "proc/self/cgroup", "0::/")
    _group(tmp_path, "sys/fs/cgroup", 10 * MIB, 12 * MIB, 0)
    group = tightest_memory_group(tmp_path)
    assert group is not None
    assert group.rest_bytes == 0


def test_a_machine_without_groups_has_no_limit(tmp_path: Path) -> None:
    assert tightest_memory_group(tmp_path) is None


def test_this_machine_has_some_memory() -> None:
    assert 0 < available_memory_bytes() < 2**50
