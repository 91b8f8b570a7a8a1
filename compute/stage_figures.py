"""What a stage did so far, in figures: the report by the JSON contract's names, and a tally for observers."""

from dataclasses import dataclass

from compute.look_ahead import LookAhead
from compute.predictors.scored import Score
from compute.residency import Residency
from compute.supply import Supply
from compute.transports.base import Transport
from protocol.manifest import Manifest

Figures = dict[str, int | float | str | None]


@dataclass(frozen=True, slots=True)
class StageFigures:
    """Reads the counters of a stage's parts; owns none."""

    manifest: Manifest
    residency: Residency
    supply: Supply
    transport: Transport
    look_ahead: LookAhead | None
    kernel_name: str
    policy_name: str

    def report(self, clock: int, num_fetched: int) -> Figures:
        """`clock`: the layer-step that runs; `num_fetched`: experts that the device fetched by itself."""
        counters, ahead = self.residency.counters, self.look_ahead
        stats = self.transport.stats()
        score = ahead.score if ahead else Score()
        return {
            "lookups": counters.lookups,
            "hits": counters.hits,
            "late": counters.late,
            "misses": counters.misses,
            "hit_rate": counters.hit_rate,
            "prefetch_issued": counters.prefetch_issued,
            "prefetch_used": counters.prefetch_used,
            "prefetch_wasted_bytes": self.residency.wasted_now(clock) * self.manifest.layout.stride,
            "miss_recall": counters.miss_recall,
            "prediction_recall": score.recall,
            "prediction_precision": score.precision,
            "stall_s": self.supply.stall_ns / 1e9,
            "bytes_read": stats.get("bytes_read", 0),
            "reads": "direct" if stats.get("reads_directly") else "page cache",
            "bytes_transferred": self._bytes_transferred(num_fetched),
            "evictions": counters.evictions,
            "arrangement": self.transport.arrangement,
            "kernel": self.kernel_name,
            "policy": self.policy_name,
            "predictor": ahead.name if ahead else "none",
            "lookahead": ahead.lookahead if ahead else 0,
            "slots": self.residency.num_slots,
            "slots_used": self.residency.num_used,
            "frames": stats.get("frames", 0),
            "frames_leased": stats.get("frames_leased", 0),
            "frames_sealed": stats.get("frames_sealed", 0),
        }

    def tally(self, num_passes: int, num_fetched: int) -> dict[str, int]:
        """The counters that are here, by name: nobody is asked, nothing is waited for."""
        counters = self.residency.counters
        return {
            "hits": counters.hits,
            "late": counters.late,
            "misses": counters.misses,
            "prefetch_issued": counters.prefetch_issued,
            "prefetch_used": counters.prefetch_used,
            "evictions": counters.evictions,
            "stall_us": self.supply.stall_ns // 1000,
            "bytes_transferred": self._bytes_transferred(num_fetched),
            "passes": num_passes,
            "slots": self.residency.num_slots,
        }

    def _bytes_transferred(self, num_fetched: int) -> int:
        return self.transport.bytes_transferred + num_fetched * self.manifest.layout.stride
