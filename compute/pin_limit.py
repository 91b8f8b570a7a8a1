"""How much memory this system lets a device's driver page-lock, as far as that can be known beforehand.

NVIDIA's driver locks pages by itself and heeds no RLIMIT_MEMLOCK; Windows below WSL2 gives about
half of the memory that it can see. What is really granted, only the driver says.
"""

import re
from pathlib import Path

_WSL_SHARE = 2


def is_wsl() -> bool:
    """Whether this Linux runs inside Windows."""
    try:
        return "microsoft" in Path("/proc/sys/kernel/osrelease").read_text().lower()
    except OSError:
        return False


def pin_limit() -> int | None:
    """Bytes; None where no limit is known."""
    return total_memory_bytes() // _WSL_SHARE if is_wsl() else None


def total_memory_bytes() -> int:
    """MemTotal of /proc/meminfo."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert found, "/proc/meminfo without MemTotal"
    return int(found[1]) * 1024
