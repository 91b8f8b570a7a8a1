"""Death, told by file descriptors: a pidfd proves that its process has ended, whoever's child it is.

Where the kernel has none (a sandbox's, for instance) a pipe stands in for it, which a thread ends once
/proc shows that the process is gone or a zombie; in a fork of its owner such a pipe tells nothing.
"""

import errno
import os
import select
import threading
import time
from collections.abc import Sequence
from pathlib import Path

_LOOK_EVERY_S = 0.02


def open_pidfd(pid: int) -> int:
    """Readable once `pid` has ended; the caller's to close. Raises OSError, ProcessLookupError above all."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
    return _watched(pid)


def _watched(pid: int) -> int:
    """The pipe's end that becomes readable."""
    began = _began(pid)
    if not began:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    read_fd, write_fd = os.pipe()

    def watch() -> None:
        reader_left = select.poll()
        reader_left.register(write_fd, 0)
        while _began(pid) == began and not reader_left.poll(0):
            time.sleep(_LOOK_EVERY_S)
        os.close(write_fd)

    threading.Thread(target=watch, name=f"watch {pid}", daemon=True).start()
    return read_fd


def _began(pid: int) -> str:
    """When `pid` began, which tells it from a later one of its number; "" for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def is_dead(pidfd: int) -> bool:
    """The process has ended: it writes no more."""
    return is_readable([pidfd], 0)


def is_readable(fds: Sequence[int], timeout_s: float | None) -> bool:
    """Whether any of `fds` is, or becomes so in time; None waits as long as it takes."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))
