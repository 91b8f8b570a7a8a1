"""Processor, memory and its limits, huge pages, file descriptors, and what the kernel must be able to do."""

import os
import platform
import resource
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from launch.doctor.finding import Finding
from protocol.arena import available_memory_bytes
from protocol.cgroup import MemoryGroup, tightest_memory_group
from protocol.pidfd import open_pidfd
from protocol.units import format_size

_LEAST_MEMORY = 2 * 2**30
_LEAST_FDS = 256
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")
_LEAST_SHARED = 64 * 2**20


def findings() -> Iterator[Finding]:
    for check in (
        processor,
        memory,
        control_group,
        huge_pages,
        shared_memory,
        file_descriptors,
        locked_memory,
        kernel_features,
    ):
        yield check()


def processor() -> Finding:
    cores = len(os.sched_getaffinity(0))
    text = f"{platform.machine()}, {cores} cores to use"
    if platform.machine() not in ("x86_64", "AMD64"):
        fix = "it works, with completions by message instead of by shared words"
        return Finding("processor", "warn", text, fix)
    return Finding("processor", "ok", text)


def memory() -> Finding:
    free = available_memory_bytes()
    text = f"{format_size(free)} can be taken"
    if free < _LEAST_MEMORY:
        return Finding("memory", "warn", text, "close something, or pass a small --ram")
    return Finding("memory", "ok", text)


def control_group() -> Finding:
    """A container's or a job's limit; its rest is part of `memory` already."""
    group = tightest_memory_group()
    if group is None:
        return Finding("memory limit", "ok", "no control group limits it")
    return limited_by(group)


def limited_by(group: MemoryGroup) -> Finding:
    """The limit, and what is left of it."""
    text = f"{format_size(group.limit_bytes)}, {format_size(group.rest_bytes)} left ({group.folder})"
    if group.rest_bytes < _LEAST_MEMORY:
        fix = "give the container or job more memory (docker run --memory), or pass a small --ram"
        return Finding("memory limit", "warn", text, fix)
    return Finding("memory limit", "ok", text)


def huge_pages() -> Finding:
    """How the kernel maps big things: torch's weights may use huge pages, the arena (shmem) as well."""
    try:
        anonymous, shared = (
            _chosen((_HUGE_PAGES / name).read_text()) for name in ("enabled", "shmem_enabled")
        )
    except OSError:
        return Finding("huge pages", "ok", "this kernel has no transparent ones: small pages do")
    text = f"anonymous {anonymous}, shared {shared}"
    if anonymous == "never":
        fix = f"as root: echo madvise > {_HUGE_PAGES / 'enabled'} (a few percent at most)"
        return Finding("huge pages", "warn", text, fix)
    return Finding("huge pages", "ok", text)


def shared_memory() -> Finding:
    """The arena is a memfd, which needs no /dev/shm; torch's DataLoader workers do."""
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return Finding("/dev/shm", "ok", "is not there, and the arena needs none")
    text = f"{format_size(usage.free)} free; the arena needs none of it"
    if usage.free < _LEAST_SHARED:
        fix = "docker run --shm-size=1g, if a DataLoader of yours has workers"
        return Finding("/dev/shm", "warn", text, fix)
    return Finding("/dev/shm", "ok", text)


def file_descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"at most {_limit(soft)} (may be raised to {_limit(hard)})"
    if soft != resource.RLIM_INFINITY and soft < _LEAST_FDS:
        return Finding("open files", "fail", text, f"ulimit -n {_LEAST_FDS}")
    return Finding("open files", "ok", text)


def locked_memory() -> Finding:
    """Memory that may be locked. The arrangements without a GPU lock none."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    unlimited = soft == resource.RLIM_INFINITY
    text = f"{'any amount' if unlimited else format_size(soft)} may be locked; without a GPU none is"
    return Finding("locked memory", "ok", text)


def kernel_features() -> Finding:
    """memfd with seals, eventfd, pidfd, and fds that travel over a Unix socket."""
    missing = [name for name, probe in _PROBES.items() if not _works(probe)]
    if missing:
        fix = "use Linux 5.14 or newer, and a container that allows these calls"
        return Finding("kernel", "fail", f"{platform.release()} lacks {', '.join(missing)}", fix)
    return Finding("kernel", "ok", f"{platform.release()}: {', '.join(_PROBES)}")


def _chosen(text: str) -> str:
    """ "madvise" of "always [madvise] never"."""
    return text.partition("[")[2].partition("]")[0] or text.strip()


def _limit(number: int) -> str:
    return "any number" if number == resource.RLIM_INFINITY else str(number)


def _works(probe: Callable[[], object]) -> bool:
    try:
        probe()
    except (OSError, AttributeError):
        return False
    return True


def _probe_memfd() -> None:
    os.close(os.memfd_create("sidestage-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))


def _probe_eventfd() -> None:
    os.close(os.eventfd(0, os.EFD_CLOEXEC))


def _probe_pidfd() -> None:
    os.close(open_pidfd(os.getpid()))


def _probe_passing() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        socket.send_fds(left, [b"fd"], [left.fileno()])
        os.close(socket.recv_fds(right, 2, 1)[1][0])


_PROBES: dict[str, Callable[[], object]] = {
    "memfd": _probe_memfd,
    "eventfd": _probe_eventfd,
    "pidfd": _probe_pidfd,
    "passing of fds": _probe_passing,
}
