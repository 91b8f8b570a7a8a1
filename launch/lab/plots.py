"""Pictures: hit rates over capacity, and what a trace looks like. matplotlib is imported here only."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm, to_hex
from matplotlib.figure import Figure, FigureBase

from launch.output import write_whole

if TYPE_CHECKING:
    from launch.lab.info import Info
    from launch.lab.simulate import Row


@dataclass(frozen=True, slots=True)
class Look:
    """How a policy's line is drawn."""

    color: str
    width: float = 1.1
    style: str = "-"


#: The bounds, the floor and ours stand out; the others take a colour in turn.
LOOKS = {
    "belady": Look("black", 2.2),
    "belady-bypass": Look("black", 1.4, ":"),
    "lru": Look("#666666", 2.2, "--"),
    "reuse-distance": Look("#d62728", 2.6),
}
MARKERS = "osD^v<>pP*Xh"


def draw_rates(rows: Sequence[Row], place: str) -> None:
    """For each trace its curves over capacity, or dots where there is one capacity only."""
    subjects = list(dict.fromkeys(row.subject for row in rows))
    looks = _looks(list(dict.fromkeys(row.policy for row in rows)))
    figure = Figure(figsize=(12.5, 4.8 * len(subjects)), layout="constrained")
    for panels, subject in zip(
        figure.subfigures(len(subjects), 1, squeeze=False)[:, 0], subjects, strict=True
    ):
        panels.suptitle(subject.words, fontsize=10, x=0.01, ha="left")
        given = [row for row in rows if row.subject is subject]
        if len({row.capacity for row in given}) > 1:
            _curves(panels, given, looks)
        else:
            _dots(panels.subplots(), given, looks)
    _save(figure, place)


def _curves(panels: FigureBase, rows: Sequence[Row], looks: dict[str, Look]) -> None:
    """Hit rates, and beside them what each policy has over lru, where that was replayed."""
    floor = {row.capacity: row.hit_rate for row in rows if row.policy == "lru"}
    left, *right = panels.subplots(1, 2 if floor else 1, squeeze=False)[0]
    nothing = dict.fromkeys((row.capacity for row in rows), 0.0)
    _lines(left, rows, looks, nothing)
    left.set_ylabel("lookups that hit, %")
    for axes in right:
        _lines(axes, rows, looks, floor)
        axes.set_ylabel("points above lru")
    legend = {"fontsize": 8, "title": "best first", "title_fontsize": 8, "frameon": False}
    (right or [left])[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), **legend)


def _lines(axes: Axes, rows: Sequence[Row], looks: dict[str, Look], floor: dict[float, float]) -> None:
    """A line for each policy, the best first: its hit rate over the `floor` at each capacity."""
    of_policy: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.capacity):
        of_policy.setdefault(row.policy, []).append(row)
    order = sorted(of_policy, key=lambda policy: -sum(row.hit_rate for row in of_policy[policy]))
    for policy in order:
        given, look = of_policy[policy], looks[policy]
        axes.plot(
            [100 * row.capacity for row in given],
            [100 * (row.hit_rate - floor[row.capacity]) for row in given],
            label=policy,
            color=look.color,
            linewidth=look.width,
            linestyle=look.style,
            marker=MARKERS[list(looks).index(policy) % len(MARKERS)],
            markersize=4,
        )
    axes.set_xlabel(f"slots, % of the experts ({_scope(rows)})")
    axes.grid(alpha=0.25)


def _dots(axes: Axes, rows: Sequence[Row], looks: dict[str, Look]) -> None:
    order = sorted(rows, key=lambda row: row.hit_rate)
    rates = [100 * row.hit_rate for row in order]
    axes.hlines(range(len(order)), min(rates) - 1, rates, color="#dddddd", lw=1)
    for height, row in enumerate(order):
        axes.plot(100 * row.hit_rate, height, marker="o", ms=7, color=looks[row.policy].color)
        axes.annotate(
            f"{100 * row.hit_rate:.1f}",
            (100 * row.hit_rate, height),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(order)), [row.policy for row in order], fontsize=8)
    axes.set_xlim(min(rates) - 1, max(rates) + 0.12 * (max(rates) - min(rates) + 5))
    axes.set_xlabel(f"lookups that hit, %, with {rows[0].result.slots} slots ({_scope(rows)})")
    axes.grid(axis="x", alpha=0.25)


def _scope(rows: Sequence[Row]) -> str:
    scope = rows[0].result.cell.scope.value
    return "one pool" if scope == "global" else "a share for each layer"


def _looks(policies: Sequence[str]) -> dict[str, Look]:
    palette = matplotlib.colormaps["tab20"]
    colours = [to_hex(palette(place)) for place in range(palette.N)]
    usual = [colour for colour in colours if colour != LOOKS["reuse-distance"].color]
    return {
        policy: LOOKS.get(policy, Look(usual[place % len(usual)])) for place, policy in enumerate(policies)
    }


def draw_info(info: Info, place: str) -> None:
    """Four panels: popularity, skew, overlap and LRU's curve."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    told = info.as_json()
    figure.suptitle(
        f"{Path(info.path).name}: {told['model'] or 'unnamed'}, {told['tokens']} tokens",
        fontsize=10,
        x=0.01,
        ha="left",
    )
    _popularity(figure, info)
    _skew(figure.add_subplot(2, 2, 2), info)
    _overlap(figure.add_subplot(2, 2, 3), info)
    _lru(figure.add_subplot(2, 2, 4), info)
    _save(figure, place)


def _popularity(figure: Figure, info: Info) -> None:
    from compute.trace_statistics import popularity

    axes = figure.add_subplot(2, 2, 1)
    shares = np.sort(popularity(info.trace), axis=1)
    image = axes.imshow(
        100 * shares[:, ::-1],
        aspect="auto",
        cmap="viridis",
        norm=PowerNorm(0.5),
        interpolation="nearest",
        origin="lower",
    )
    figure.colorbar(image, ax=axes, label="% of the layer's uses")
    axes.set_xlabel("experts of a layer, the busiest first")
    axes.set_ylabel("MoE layer")
    axes.set_title("popularity", fontsize=9, loc="left")


def _skew(axes: Axes, info: Info) -> None:
    layers = [layer.layer for layer in info.layers]
    axes.plot(
        layers, [layer.entropy for layer in info.layers], marker="o", ms=4, label="entropy (1 = all alike)"
    )
    axes.plot(
        layers,
        [layer.busiest_quarter for layer in info.layers],
        marker="s",
        ms=4,
        label="share of the busiest quarter (0.25 = all alike)",
    )
    _finish(axes, "skew", "MoE layer", "")


def _overlap(axes: Axes, info: Info) -> None:
    layers = [layer.layer for layer in info.layers]
    measured = [math.nan if layer.overlap is None else layer.overlap for layer in info.layers]
    axes.plot(layers, measured, marker="o", ms=4, label="measured")
    axes.plot(
        layers,
        [layer.overlap_by_chance for layer in info.layers],
        ls="--",
        color="#666666",
        label="by popularity alone",
    )
    _finish(axes, "experts that the token before used too", "MoE layer", "share of a token's experts")


def _lru(axes: Axes, info: Info) -> None:
    curve = info.curve
    axes.plot(
        [100 * c for c in curve.capacity], [100 * r for r in curve.hit_rate], marker="o", ms=3, label="lru"
    )
    ceiling = 100 * (1 - info.num_cold / info.num_lookups)
    axes.axhline(ceiling, color="black", lw=1, ls=":", label=f"all but cold misses, {ceiling:.1f}")
    _finish(axes, "LRU by stack distance, one pool", "slots, % of the experts", "lookups that hit, %")


def _finish(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def _save(figure: Figure, place: str) -> None:
    drawn = io.BytesIO()
    figure.savefig(drawn, format=Path(place).suffix[1:], dpi=130)
    write_whole(place, drawn.getvalue())
