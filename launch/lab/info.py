"""`sidestage trace info`: what a trace holds, in figures, as JSON and as a picture."""

import json as json_text
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from compute.layer_steps import LayerSteps, layer_steps
from compute.replay import replay
from compute.stack_distance import StackDistances, stack_distances
from compute.trace import Json, Trace
from compute.trace_file import read
from compute.trace_statistics import LayerStatistics, layer_statistics
from launch.lab.config import check_picture
from launch.lab.tables import print_table
from launch.output import check_place, write_json

#: Points of the curve.
NUM_CAPACITIES = 40


@dataclass(frozen=True, slots=True)
class Curve:
    """LRU's hit rate with one pool of `slots`, for a fraction `capacity` of all experts."""

    slots: list[int]
    capacity: list[float]
    hit_rate: list[float]


@dataclass(frozen=True, slots=True)
class Info:
    """Everything that is told of a trace."""

    path: str
    trace: Trace
    num_passes: int
    num_lookups: int
    num_cold: int
    layers: list[LayerStatistics]
    curve: Curve

    def as_json(self) -> dict[str, Json]:
        trace = self.trace
        num_decode = int(trace.phase.sum())
        return {
            "trace": self.path,
            "model": trace.meta.get("model"),
            "tokens": trace.num_tokens,
            "prefill_tokens": trace.num_tokens - num_decode,
            "decode_tokens": num_decode,
            "sequences": len(set(trace.sequence.tolist())),
            "passes": self.num_passes,
            "layers": trace.num_layers,
            "experts": trace.num_experts,
            "top_k": trace.top_k,
            "has_scores": trace.scores is not None,
            "has_probs": trace.probs is not None,
            "lookups": self.num_lookups,
            "cold_misses": self.num_cold,
            "busiest_quarter": self.mean("busiest_quarter"),
            "entropy": self.mean("entropy"),
            "overlap": self.mean("overlap"),
            "overlap_by_chance": self.mean("overlap_by_chance"),
            "per_layer": [asdict(layer) for layer in self.layers],
            "lru": asdict(self.curve),
        }

    def mean(self, name: str) -> float | None:
        """Over the layers of which there is such a figure."""
        values = [value for layer in self.layers if (value := getattr(layer, name)) is not None]
        return sum(values) / len(values) if values else None


def tell(path: str, *, tokens: int | None, plot: str | None, json: str | None) -> None:
    """Raises ValueError with a sentence."""
    check_place("--json", json)
    check_picture(plot)
    whole = read(Path(path))
    info = info_of(path, whole if tokens is None else whole.first(tokens))
    _print(info, sys.stderr if json == "-" else sys.stdout)
    if plot is not None:
        from launch.lab.plots import draw_info

        draw_info(info, plot)
    if json is not None:
        write_json(json, json_text.dumps(info.as_json()))


def info_of(path: str, trace: Trace) -> Info:
    steps = layer_steps(trace)
    distances = stack_distances(steps)
    return Info(
        path=path,
        trace=trace,
        num_passes=steps.num_passes,
        num_lookups=steps.num_lookups,
        num_cold=distances.num_cold,
        layers=layer_statistics(trace),
        curve=_curve(steps, distances),
    )


def _curve(steps: LayerSteps, distances: StackDistances) -> Curve:
    """From top-k slots to all; where a layer-step needs more than there are, by a replay."""
    num_keys = steps.num_layers * steps.num_experts
    points = {round(num_keys * place / NUM_CAPACITIES) for place in range(1, NUM_CAPACITIES + 1)}
    slots = sorted(point for point in points | {steps.top_k} if point >= steps.top_k)
    hits = [
        distances.hits(point) if point >= distances.least_slots else replay(steps, "lru", point).hits
        for point in slots
    ]
    rates = [hit / steps.num_lookups for hit in hits]
    return Curve(slots, [point / num_keys for point in slots], rates)


def _print(info: Info, file: TextIO) -> None:
    from rich.table import Table

    told = info.as_json()
    file.write(
        f"{info.path}: {told['model'] or 'a model without a name'}, {told['layers']} layers of "
        f"{told['experts']} experts, top {told['top_k']}\n"
        f"{told['tokens']} tokens ({told['prefill_tokens']} prefill, {told['decode_tokens']} decode) of "
        f"{told['sequences']} sequences in {told['passes']} passes; {_extras(info.trace)}\n"
        f"{told['lookups']} lookups, {told['cold_misses']} of them cold\n\n"
    )
    table = Table(box=None, pad_edge=False)
    for name in ("layer", "busiest quarter", "entropy", "overlap", "by chance"):
        table.add_column(name, justify="right")
    for layer in info.layers:
        table.add_row(str(layer.layer), *_figures(layer))
    table.add_row("mean", *(_share(info.mean(name)) for name in _FIGURES))
    print_table(table, file)
    shown = [min(range(len(info.curve.slots)), key=lambda i: abs(info.curve.capacity[i] - c)) for c in _SHOWN]
    rates = ", ".join(f"{info.curve.hit_rate[i]:.1%} at {info.curve.slots[i]}" for i in dict.fromkeys(shown))
    file.write(f"\nlru hits, by slots of one pool: {rates}\n")


_SHOWN = (0.05, 0.125, 0.25, 0.5, 0.75, 1.0)
_FIGURES = ("busiest_quarter", "entropy", "overlap", "overlap_by_chance")


def _figures(layer: LayerStatistics) -> list[str]:
    return [_share(getattr(layer, name)) for name in _FIGURES]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _extras(trace: Trace) -> str:
    if trace.probs is not None:
        return "whole distributions"
    return "scores of the chosen" if trace.scores is not None else "choices alone"
