"""The server's figures in Prometheus' words: what was asked, how long it took, what the experts did.

Counts requests and tokens itself; cache, prefetcher and link are told by compute's last report.
"""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from launch.server.line import Flow
from launch.server.messages import Ended

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Figures = Mapping[str, object]

_FIRST_TOKEN_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_PER_TOKEN_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)

#: name in the report -> (name for Prometheus, help)
_COUNTERS = {
    "lookups": ("lookups", "Experts asked for, once per layer-step."),
    "hits": ("hits", "Lookups of experts that were resident."),
    "late": ("late", "Lookups of experts that were on their way."),
    "misses": ("misses", "Lookups of experts that nobody had asked for."),
    "prefetch_issued": ("prefetch_issued", "Experts asked for ahead of need."),
    "prefetch_used": ("prefetch_used", "Prefetched experts that were then used."),
    "prefetch_wasted_bytes": ("prefetch_wasted_bytes", "Bytes of experts prefetched in vain."),
    "bytes_read": ("read_bytes", "Bytes that the loader read from the store."),
    "bytes_transferred": ("transferred_bytes", "Bytes that went over the link."),
    "stall_s": ("stall_seconds", "Seconds that compute waited for experts."),
}
_GAUGES = {
    "slots": ("slots", "Experts that can be resident."),
    "slots_used": ("slots_used", "Slots that hold or await an expert."),
    "frames": ("frames", "Frames of the loader's arena."),
    "frames_leased": ("frames_leased", "Frames that clients hold."),
    "frames_sealed": ("frames_sealed", "Frames that hold an expert."),
    "running": ("requests_running", "Requests that are being answered."),
    "waiting": ("requests_waiting", "Requests that wait for their turn."),
}


class Metrics:
    """Observed by the line and the entry; read by /metrics."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "sidestage_requests",
            "HTTP requests by path and status.",
            ["path", "status"],
            registry=self._registry,
        )
        self._ends = Counter(
            "sidestage_answers", "Answers by the way they ended.", ["reason"], registry=self._registry
        )
        self._prompt_tokens = Counter(
            "sidestage_prompt_tokens", "Tokens of prompts.", registry=self._registry
        )
        self._new_tokens = Counter("sidestage_new_tokens", "Tokens generated.", registry=self._registry)
        self._first_token = Histogram(
            "sidestage_time_to_first_token_seconds",
            "From a request's arrival to its first token, waiting included.",
            buckets=_FIRST_TOKEN_S,
            registry=self._registry,
        )
        self._per_token = Histogram(
            "sidestage_time_per_token_seconds",
            "Mean time between an answer's tokens.",
            buckets=_PER_TOKEN_S,
            registry=self._registry,
        )
        self.totals = {"answers": 0, "prompt_tokens": 0, "new_tokens": 0}

    def note_end(self, flow: Flow) -> None:
        """A request has ended."""
        if not isinstance(flow.end, Ended):
            self._ends.labels("declined").inc()
            return
        self._ends.labels(flow.end.reason).inc()
        self._prompt_tokens.inc(flow.end.prompt_tokens)
        self._new_tokens.inc(flow.end.new_tokens)
        self.totals["answers"] += 1
        self.totals["prompt_tokens"] += flow.end.prompt_tokens
        self.totals["new_tokens"] += flow.end.new_tokens
        if flow.first_s is not None:
            self._first_token.observe(flow.first_s - flow.arrived_s)
        if (seconds := flow.seconds_per_token) is not None:
            self._per_token.observe(seconds)

    def watch(self, figures: Callable[[], Figures]) -> None:
        """`figures` tells the newest report, and how many requests run and wait."""
        self._registry.register(_ReportCollector(figures))

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _ReportCollector(Collector):
    """Turns figures into metrics whenever somebody looks."""

    def __init__(self, figures: Callable[[], Figures]) -> None:
        self._figures = figures

    def describe(self) -> Iterator[Metric]:
        """Nothing is known before the model is there."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        figures = self._figures()
        for name, (told, text) in _COUNTERS.items():
            yield CounterMetricFamily(f"sidestage_{told}", text, value=_number(figures, name))
        for name, (told, text) in _GAUGES.items():
            yield GaugeMetricFamily(f"sidestage_{told}", text, value=_number(figures, name))
        restarts = _number(figures, "loader_restarts")
        yield CounterMetricFamily("sidestage_loader_restarts", "Loaders that were replaced.", value=restarts)
        evictions = CounterMetricFamily("sidestage_evictions", "Experts that left a slot.", labels=["policy"])
        evictions.add_metric([str(figures.get("policy", ""))], _number(figures, "evictions"))
        yield evictions


def _number(figures: Figures, name: str) -> float:
    value = figures.get(name)
    return float(value) if isinstance(value, int | float) else 0.0
