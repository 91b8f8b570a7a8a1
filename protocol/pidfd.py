"""Death, told by file descriptors: a pidfd proves that its process has ended, whoever's child it is."""

import select
from collections.abc import Sequence


def is_dead(pidfd: int) -> bool:
    """The process has ended: it writes no more."""
    return is_readable([pidfd], 0)


def is_readable(fds: Sequence[int], timeout_s: float | None) -> bool:
    """Whether any of `fds` is, or becomes so in time; None waits as long as it takes."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))
