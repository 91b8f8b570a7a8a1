"""An alarm clock with an fd: poll it beside other fds and be woken to the microsecond.

poll() alone counts in milliseconds. A timerfd on time.monotonic_ns()'s clock, through libc,
because Python has none before 3.13.
"""

import ctypes
import os
import time

_NS_PER_S = 10**9
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
_ABSOLUTE = 1

_libc = ctypes.CDLL(None, use_errno=True)


class _Spec(ctypes.Structure):
    """struct itimerspec: the interval (none) and the time to ring."""

    _fields_ = [(name, ctypes.c_long) for name in ("interval_s", "interval_ns", "at_s", "at_ns")]


class Alarm:
    """`fd` is readable from the time set until the next `set`."""

    def __init__(self) -> None:
        self.fd: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "no timer could be made")

    def set(self, at_ns: int | None) -> None:
        """Ring at `at_ns` (at once when that is past); None: not at all."""
        spec = _Spec(0, 0, *divmod(max(at_ns, 1), _NS_PER_S)) if at_ns is not None else _Spec()
        if _libc.timerfd_settime(self.fd, _ABSOLUTE, ctypes.byref(spec), None):
            raise OSError(ctypes.get_errno(), "the timer could not be set")

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
