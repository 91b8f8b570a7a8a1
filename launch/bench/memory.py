"""Peak memory of an arm: its process and its loader, their shared arena counted once."""

import os
from pathlib import Path


def peak_rss_bytes(loader_pid: int) -> int:
    """Of this process and, unless it is 0, of its loader, which has touched the whole arena."""
    own = _status("self", "VmHWM")
    if not loader_pid:
        return own
    return own - _status(str(os.getpid()), "RssShmem") + _status(str(loader_pid), "VmHWM")


def _status(pid: str, name: str) -> int:
    """A figure of /proc/PID/status in bytes; 0 where there is none."""
    for line in Path("/proc", pid, "status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    return 0
