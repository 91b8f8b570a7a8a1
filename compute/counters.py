"""What the residency counts: per (forward pass, layer, distinct expert). Plain numbers, no decisions."""

from dataclasses import dataclass


@dataclass(slots=True)
class ResidencyCounters:
    """lookups = hits + late + misses; a prefetch that was issued ends as used, wasted or dropped."""

    hits: int = 0
    late: int = 0
    misses: int = 0
    evictions: int = 0
    prefetch_issued: int = 0
    #: counted at the first real use, on its way or there
    prefetch_used: int = 0
    #: landed, and evicted without a use
    prefetch_wasted: int = 0
    #: cancelled, and ended without bytes
    prefetch_dropped: int = 0

    @property
    def lookups(self) -> int:
        return self.hits + self.late + self.misses

    @property
    def hit_rate(self) -> float | None:
        """hits / lookups; None without lookups."""
        return self.hits / self.lookups if self.lookups else None

    @property
    def miss_recall(self) -> float | None:
        """Share of would-be misses that the prefetcher had asked for; None without prefetch."""
        would_be = self.prefetch_used + self.misses
        return self.prefetch_used / would_be if self.prefetch_issued and would_be else None
