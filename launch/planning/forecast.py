"""The forecast: tokens per second of a cache, with a band. Pure arithmetic over stated speeds.

The time of a token is the timing model's, `compute/timing_model.py`; here is what goes into it, and
how sure that is. What is not known is taken three times: as bad, as likely, and as good as it may be.
"""

from dataclasses import dataclass

from compute.timing_model import Link, Moved, timing

#: Tokens that are imagined: enough for the counts to be whole numbers.
NUM_TOKENS = 10_000
#: Share of the would-be misses that a lookahead of one layer has asked for in time: none, as in our
#: benches (0.5 to 0.6), and nearly all.
RECALL = (0.0, 0.55, 0.9)
#: Guesses that were wrong, for each right one.
WASTED = 0.4


@dataclass(frozen=True, slots=True)
class Band:
    """Of one figure: at the worst, likely, at the best."""

    low: float
    likely: float
    high: float

    def __post_init__(self) -> None:
        assert self.low <= self.likely <= self.high, self

    @classmethod
    def around(cls, likely: float, factor: float) -> "Band":
        """From `likely` / factor to `likely` * factor."""
        return cls(likely / factor, likely, likely * factor)


@dataclass(frozen=True, slots=True)
class Work:
    """What one token does: bytes of weights worked through beside the experts', and lookups."""

    num_layers: int
    top_k: int
    expert_bytes: int
    worked_bytes: int


@dataclass(frozen=True, slots=True)
class Speeds:
    """Bytes a second of expert weights, of dense weights and of the link; microseconds a layer costs
    whatever its size, once more when something may be missing, and each fetch beside its bytes.
    """

    experts: Band
    dense: Band
    link: Band
    layer_us: Band
    offload_us: Band
    fetch_us: Band


@dataclass(frozen=True, slots=True)
class Forecast:
    """Tokens per second of decode. `resident`: with every expert in a slot; `layer_us`: a layer's compute."""

    tokens_per_second: Band
    resident: Band
    layer_us: float


def forecast(work: Work, speeds: Speeds, hit: Band, lookahead: int) -> Forecast:
    """What to expect of decode at these hit rates. A cache that holds everything misses nothing."""
    likely = _layer_us(work, speeds.experts.likely, speeds.dense.likely, speeds.layer_us.likely)
    slow = _layer_us(work, speeds.experts.low, speeds.dense.low, speeds.layer_us.high)
    fast = _layer_us(work, speeds.experts.high, speeds.dense.high, speeds.layer_us.low)
    resident = Band(*(1e6 / (work.num_layers * each) for each in (slow, likely, fast)))
    if hit.low >= 1.0:
        return Forecast(resident, resident, likely)
    recall = RECALL if lookahead else (0.0, 0.0, 0.0)
    offload, fetch, link = speeds.offload_us, speeds.fetch_us, speeds.link
    rates = (
        _rate(work, slow + offload.high, link.low, fetch.high, hit.low, recall[0]),
        _rate(work, likely + offload.likely, link.likely, fetch.likely, hit.likely, recall[1]),
        _rate(work, fast + offload.low, link.high, fetch.low, hit.high, recall[2]),
    )
    return Forecast(Band(*rates), resident, likely)


def _layer_us(work: Work, experts_rate: float, dense_rate: float, overhead_us: float) -> float:
    """Compute of one MoE layer, with its share of everything that is in no MoE layer."""
    experts_s = work.top_k * work.expert_bytes / experts_rate
    dense_s = work.worked_bytes / work.num_layers / dense_rate
    return overhead_us + (experts_s + dense_s) * 1e6


def _rate(work: Work, layer_us: float, link_rate: float, fetch_us: float, hit: float, recall: float) -> float:
    """Tokens per second by the timing model; a fetch's own cost makes the link slower."""
    num_steps = NUM_TOKENS * work.num_layers
    num_absent = num_steps * work.top_k * (1 - hit)
    num_used = round(num_absent * recall)
    moved = Moved(
        num_tokens=NUM_TOKENS,
        num_steps=num_steps,
        demanded=round(num_absent) - num_used,
        used=num_used,
        wasted=round(num_used * WASTED),
    )
    blob_s = work.expert_bytes / link_rate + fetch_us / 1e6
    rate = timing(moved, Link(work.expert_bytes / blob_s, work.expert_bytes, layer_us)).tokens_per_second
    assert rate is not None, "a layer that takes no time"
    return rate
