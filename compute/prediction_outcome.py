"""What came of a replay with prefetch: hits, late ones and misses, and how good the predictions were."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from compute.counters import ResidencyCounters
from compute.predictors.scored import Score


@dataclass(frozen=True, slots=True)
class PredictedOutcome:
    """`counters` are the live runtime's; `seconds` is the replay's own time.

    `wasted`: guesses that came in vain; `stall_s` and `total_s` are modelled, None without a link.
    """

    counters: ResidencyCounters
    score: Score
    wasted: int
    num_tokens: int
    stall_s: float | None
    total_s: float | None
    seconds: float

    @property
    def prefetch_hits(self) -> int:
        """Hits on guesses; the other hits are on what had been demanded before."""
        return self.counters.prefetch_used - self.counters.late

    @property
    def wasted_share(self) -> float | None:
        """Of the guesses that were asked for, those that came in vain; None where none was."""
        issued = self.counters.prefetch_issued
        return self.wasted / issued if issued else None

    @property
    def tokens_per_second(self) -> float | None:
        """Modelled; None without a link."""
        return self.num_tokens / self.total_s if self.total_s else None

    def as_json(self) -> dict[str, int | float | None]:
        """By the names of the live run's JSON; wasted experts are told as a number, not in bytes."""
        counters = self.counters
        return {
            "lookups": counters.lookups,
            "hits": counters.hits,
            "late": counters.late,
            "misses": counters.misses,
            "evictions": counters.evictions,
            "hit_rate": counters.hit_rate,
            "prefetch_issued": counters.prefetch_issued,
            "prefetch_used": counters.prefetch_used,
            "prefetch_hits": self.prefetch_hits,
            "prefetch_wasted": self.wasted,
            "prefetch_dropped": counters.prefetch_dropped,
            "miss_recall": counters.miss_recall,
            "prediction_recall": self.score.recall,
            "prediction_precision": self.score.precision,
            "stall_s": self.stall_s,
            "tokens_per_second": self.tokens_per_second,
            "seconds": self.seconds,
        }


def total(counters: Sequence[ResidencyCounters]) -> ResidencyCounters:
    """Those of several caches as one."""
    names = [field.name for field in fields(ResidencyCounters)]
    return ResidencyCounters(**{name: sum(getattr(each, name) for each in counters) for name in names})
