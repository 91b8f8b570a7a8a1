"""The bounds that an offloaded arm is judged against. Pure arithmetic on one token's averages.

m experts of B bytes move in each of L layers over a link (or disk) of W bytes a second; c is the
compute of a layer. One after the other: T_s = L (c + m B / W). Overlapped: T* = max(L c, L m B / W).
"""

from dataclasses import dataclass

SERIAL = "serial"
OVERLAPPED = "overlapped"


@dataclass(frozen=True, slots=True)
class Work:
    """One decoded token: `compute_s` is L c, `moved_experts` is L m, `expert_bytes` B, `bytes_per_s` W."""

    compute_s: float
    moved_experts: float
    expert_bytes: int
    bytes_per_s: float

    @property
    def transfer_s(self) -> float:
        """L m B / W."""
        return self.moved_experts * self.expert_bytes / self.bytes_per_s

    @property
    def serial_s(self) -> float:
        """T_s: nothing moves while something is computed."""
        return self.compute_s + self.transfer_s

    @property
    def overlapped_s(self) -> float:
        """T*: whatever is shorter hides behind the other."""
        return max(self.compute_s, self.transfer_s)

    def bound_s(self, prefetches: bool) -> tuple[str, float]:
        """The bound that applies, its name first: the overlapped one for who prefetches."""
        return (OVERLAPPED, self.overlapped_s) if prefetches else (SERIAL, self.serial_s)


def num_moved(misses: int, late: int, prefetch_used: int) -> int:
    """Lookups that something had to be moved for: misses and used guesses, late ones among these.

    Wasted guesses are no part of it: they are the prefetcher's loss.
    """
    return misses + max(prefetch_used, late)
