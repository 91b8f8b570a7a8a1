"""The timing model: from what a cache missed to tokens per second over a stated link. Pure arithmetic.

It sees averages over layer-steps. A demand fetch stops the layer that wants it; what is prefetched
flows while layers compute, and stops them only where it takes longer than they do. The bounds are
those by which a measured run is judged.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """`rate` in bytes per second, `blob_bytes` of one expert, `layer_us` of compute for one layer-step."""

    rate: float
    blob_bytes: float
    layer_us: float

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"a link of {self.rate:g} bytes per second moves nothing")
        if not self.blob_bytes > 0:
            raise ValueError(f"an expert of {self.blob_bytes:g} bytes is none: at least 1 is needed")
        if not 0 <= self.layer_us < float("inf"):
            raise ValueError(f"a layer cannot compute for {self.layer_us:g} us: 0 or more is allowed")

    @property
    def blob_s(self) -> float:
        """Seconds that one expert takes over the link."""
        return self.blob_bytes / self.rate

    @property
    def layer_s(self) -> float:
        return self.layer_us / 1e6


@dataclass(frozen=True, slots=True)
class Moved:
    """What a replay moved: experts `demanded` (misses and late ones), prefetched and `used`, and `wasted`."""

    num_tokens: int
    num_steps: int
    demanded: int
    used: int = 0
    wasted: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds for the whole replay. `bound_s` is T* (all transfers hidden), `serial_s` is T_s (none)."""

    num_tokens: int
    total_s: float
    stall_s: float
    bound_s: float
    serial_s: float

    @property
    def tokens_per_second(self) -> float | None:
        return _rate(self.num_tokens, self.total_s)

    @property
    def bound_tokens_per_second(self) -> float | None:
        return _rate(self.num_tokens, self.bound_s)


def timing(moved: Moved, link: Link) -> Timing:
    """T* = max(L c, L m B / W) and T_s = L (c + m B / W), with m = (demanded + used) / steps.

    The model's own time is L (d B / W + max(c, p B / W)), with d = demanded / steps and
    p = (used + wasted) / steps; without prefetch that is T_s.
    """
    compute_s = moved.num_steps * link.layer_s
    needed_s = (moved.demanded + moved.used) * link.blob_s
    demanded_s = moved.demanded * link.blob_s
    prefetched_s = (moved.used + moved.wasted) * link.blob_s
    total_s = demanded_s + max(compute_s, prefetched_s)
    return Timing(
        num_tokens=moved.num_tokens,
        total_s=total_s,
        stall_s=total_s - compute_s,
        bound_s=max(compute_s, needed_s),
        serial_s=compute_s + needed_s,
    )


def _rate(num_tokens: int, seconds: float) -> float | None:
    return num_tokens / seconds if seconds > 0 else None
