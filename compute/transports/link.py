"""A link of RATE bytes a second: when what is put on it has crossed.

Pure; times are passed in, in nanoseconds. First in, first out: a token bucket. It keeps the rate
even when the thread that feeds it comes late, as a copy engine with its own queue would; it
never goes beyond, except to catch up on lateness of at most CATCH_UP_NS.
"""

CATCH_UP_NS = 10_000_000


class LinkClock:
    """`rate`: bytes per second, None for as fast as bytes can be copied."""

    def __init__(self, rate: int | None) -> None:
        if rate is not None and rate <= 0:
            raise ValueError(f"a link of {rate} bytes/s: a rate above 0 is needed")
        self.rate = rate
        #: Time during which something was on the link.
        self.busy_ns = 0
        self._free_at_ns = 0

    def book(self, ready_ns: int, from_ns: int, copied_ns: int, num_bytes: int) -> tuple[int, int]:
        """When a chunk is on the link: (from, until).

        It could have been put there at `ready_ns`, its copy lasted from `from_ns` to `copied_ns`. A
        chunk put there late is on the link in the past: it has crossed when it is copied, too.
        """
        if self.rate is None:
            start_ns, end_ns = from_ns, copied_ns
        else:
            start_ns = max(ready_ns, from_ns - CATCH_UP_NS, self._free_at_ns)
            end_ns = start_ns + num_bytes * 10**9 // self.rate
        self._free_at_ns = end_ns
        self.busy_ns += end_ns - start_ns
        return start_ns, end_ns


def chunk_bytes_for(rate: int | None) -> int:
    """A chunk is about a millisecond of the link, 64 KiB to 2 MiB: short for a demand to wait for."""
    if rate is None:
        return 2 * 2**20
    return min(max(rate // 1000 // 4096 * 4096, 64 * 2**10), 2 * 2**20)
