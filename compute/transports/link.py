"""A link of RATE bytes a second: when what is put on it has crossed.

Pure; times are passed in, in nanoseconds. First in, first out, without a gap and without a
burst: a token bucket whose depth is what is in flight.
"""


class LinkClock:
    """`rate`: bytes per second, None for as fast as bytes can be copied."""

    def __init__(self, rate: int | None) -> None:
        if rate is not None and rate <= 0:
            raise ValueError(f"a link of {rate} bytes/s: a rate above 0 is needed")
        self.rate = rate
        #: Time during which something was on the link.
        self.busy_ns = 0
        self._free_at_ns = 0

    def book(self, from_ns: int, copied_ns: int, num_bytes: int) -> tuple[int, int]:
        """When a chunk crosses: (from, until).

        It was put on the link at `from_ns`, and its bytes lie at the other end since `copied_ns`,
        before which it has not crossed.
        """
        start_ns = max(from_ns, self._free_at_ns)
        wire_ns = num_bytes * 10**9 // self.rate if self.rate else 0
        end_ns = max(start_ns + wire_ns, copied_ns)
        self._free_at_ns = end_ns
        self.busy_ns += end_ns - start_ns
        return start_ns, end_ns


def chunk_bytes_for(rate: int | None) -> int:
    """A chunk is about a millisecond of the link, 64 KiB to 2 MiB: short for a demand to wait for."""
    if rate is None:
        return 2 * 2**20
    return min(max(rate // 1000 // 4096 * 4096, 64 * 2**10), 2 * 2**20)
