"""The bench's table on the terminal. Knows how figures look, not where they come from."""

from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table

from launch.bench.figures import Figures
from protocol.units import format_size

_WIDTH = 160
_COLUMNS = (
    "pp tok/s",
    "tg tok/s",
    "hit",
    "late",
    "miss",
    "stalled",
    "used",
    "bound tok/s",
    "efficiency",
    "peak",
)


def print_figures(title: str, arms: Sequence[Figures], file: TextIO) -> None:
    """A row an arm; below it what an arm has to say."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("arm", no_wrap=True)
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for figures in arms:
        table.add_row(figures["arm"], *_cells(figures))
    Console(file=file, width=None if file.isatty() else _WIDTH).print(table)
    for figures in arms:
        if said := figures.get("error") or figures.get("note"):
            file.write(f"{figures['arm']}: {said}\n")


def _cells(figures: Figures) -> list[str]:
    lookups = figures.get("lookups") or 0
    shares = [figures[name] / lookups if lookups else None for name in ("hits", "late", "misses")]
    bound = figures["bound_tokens_per_second"]
    return [
        _rate(figures, "pp"),
        _rate(figures, "tg"),
        *map(_percent, shares),
        _percent(figures.get("stalled")),
        _percent(figures.get("utilisation")),
        "-" if bound is None else f"{bound:.2f} ({figures['bound']})",
        _percent(figures["efficiency"]),
        "-" if figures["peak_rss_bytes"] is None else format_size(figures["peak_rss_bytes"]),
    ]


def _rate(figures: Figures, phase: str) -> str:
    mean, deviation = figures[f"{phase}_tokens_per_second"], figures[f"{phase}_deviation"]
    return "-" if mean is None else f"{mean:.2f} ± {deviation:.2f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
