"""Figures: what the segments of every arm come to. Pure arithmetic on what the arms answered."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launch.bench.bounds import Work, num_moved

#: The columns that every arm has, whether it ran or not.
NAMES = (
    "pp_tokens_per_second",
    "pp_deviation",
    "tg_tokens_per_second",
    "tg_deviation",
    "hit_rate",
    "bound_tokens_per_second",
    "efficiency",
    "peak_rss_bytes",
)

#: Of each repeat, on the clock and of the arm's own process (not of its loader).
SECONDS = ("pp_s", "tg_s", "pp_cpu_s", "tg_cpu_s")

Figures = dict[str, Any]
Segment = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Means:
    """How experts reach an arm: `bytes_per_s` over disk or link, whichever is the stated or slower one."""

    expert_bytes: int
    bytes_per_s: float
    is_link: bool


def figures_of(arm: str, facts: Figures, segments: Sequence[Segment], pp: int, tg: int) -> Figures:
    """Rates with mean and deviation over the segments; counters summed over them, of decode alone."""
    rates = {
        "pp": [pp / segment["pp_s"] for segment in segments],
        "tg": [tg / segment["tg_s"] for segment in segments],
    }
    figures: Figures = {"arm": arm, **dict.fromkeys(NAMES)}
    for phase, values in rates.items():
        figures[f"{phase}_tokens_per_second"] = statistics.mean(values)
        figures[f"{phase}_deviation"] = statistics.stdev(values) if len(values) > 1 else 0.0
    figures["peak_rss_bytes"] = max(segment["peak_rss_bytes"] for segment in segments)
    counted, of_prompts = _summed(segments, "tg"), _summed(segments, "pp")
    figures |= {
        "pp_hit_rate": _hit_rate(of_prompts),
        **{f"pp_{name}": number for name, number in of_prompts.items()},
        "hit_rate": _hit_rate(counted),
        **counted,
        **{
            name: [segment[name] for segment in segments] for name in ("pp_s", "tg_s", "pp_cpu_s", "tg_cpu_s")
        },
        "prediction_recall": segments[-1].get("prediction_recall"),
        "host_share": _host_share(segments),
    }
    return figures | facts


def failed(arm: str, sentence: str) -> Figures:
    """An arm that could not run: every figure is null, `error` says why."""
    return {"arm": arm, **dict.fromkeys(NAMES), "error": sentence}


def add_bound(figures: Figures, resident: Figures, means: Means, tg: int) -> None:
    """Put the bound and the efficiency beside an offloaded arm's figures; c is the resident arm's."""
    num_tokens, seconds = tg * len(figures["tg_s"]), sum(figures["tg_s"])
    moved = num_moved(figures["misses"], figures["late"], figures["prefetch_used"])
    work = Work(
        compute_s=sum(resident["tg_s"]) / (tg * len(resident["tg_s"])),
        moved_experts=moved / num_tokens,
        expert_bytes=means.expert_bytes,
        bytes_per_s=means.bytes_per_s,
    )
    name, bound_s = work.bound_s(prefetches=bool(figures["lookahead"]))
    carried = figures["bytes_transferred" if means.is_link else "bytes_read"]
    figures |= {
        "bound": name,
        "bound_tokens_per_second": 1 / bound_s,
        "efficiency": bound_s * num_tokens / seconds,
        "compute_s_per_token": work.compute_s,
        "moved_experts_per_token": work.moved_experts,
        "bytes_per_second": means.bytes_per_s,
        "utilisation": carried / (seconds * means.bytes_per_s),
        "stalled": figures["stall_s"] / seconds,
    }


def _summed(segments: Sequence[Segment], phase: str) -> Figures:
    names = segments[0][phase]
    return {name: sum(segment[phase][name] for segment in segments) for name in names}


def _host_share(segments: Sequence[Segment]) -> float | None:
    """The part of decode in which no pass was on a CUDA device; None on the CPU."""
    on_device = [segment["tg_device_s"] for segment in segments if segment.get("tg_device_s") is not None]
    return 1 - sum(on_device) / sum(segment["tg_s"] for segment in segments) if on_device else None


def _hit_rate(counted: Figures) -> float | None:
    return counted["hits"] / counted["lookups"] if counted.get("lookups") else None
