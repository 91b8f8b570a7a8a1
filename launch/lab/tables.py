"""Tables on the terminal. Knows how figures look, not where they come from."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.table import Table

    from launch.lab.simulate import Row

#: Columns of text where no terminal says how many it has.
WIDTH = 160


def print_table(table: "Table", file: TextIO) -> None:
    """To a terminal in its width, to a file in ours."""
    from rich.console import Console

    Console(file=file, width=None if file.isatty() else WIDTH).print(table)


def print_rates(title: str, rows: Sequence["Row"], file: TextIO) -> None:
    """A row for each policy, the best first; for each capacity its hit rate and more."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("policy", no_wrap=True)
    capacities = list(dict.fromkeys(row.capacity for row in rows))
    slots = {row.capacity: row.result.slots for row in rows}
    has_link = rows[0].timing is not None
    has_foresight = any(row.result.foreseen for row in rows)
    for capacity in capacities:
        table.add_column(f"{capacity:.3g} = {slots[capacity]} slots", justify="right", no_wrap=True)
        table.add_column("gap closed", justify="right")
        if has_foresight:
            table.add_column("late", justify="right")
            table.add_column("miss recall", justify="right")
        if has_link:
            table.add_column("tok/s", justify="right")
            table.add_column("stalled", justify="right")
    table.add_column("replay s", justify="right")
    of_policy: dict[str, dict[float, Row]] = {}
    for row in rows:
        of_policy.setdefault(row.policy, {})[row.capacity] = row
    for policy, given in sorted(of_policy.items(), key=lambda item: -_total(item[1].values())):
        cells = [text for capacity in capacities for text in _cells(given[capacity], has_foresight)]
        seconds = sum(row.result.outcome.seconds for row in given.values())
        table.add_row(policy, *cells, f"{seconds:.1f}")
    print_table(table, file)
    if has_link and (bound := _bound(rows)):
        file.write(bound + "\n")
    file.write("\n")


def _total(rows: Iterable["Row"]) -> float:
    return sum(row.hit_rate for row in rows)


def _cells(row: "Row", has_foresight: bool) -> list[str]:
    cells = [f"{row.hit_rate:.1%}", _percent(row.result.gap_closed)]
    if has_foresight:
        foreseen, lookups = row.result.foreseen or {}, row.result.outcome.lookups
        late = foreseen.get("late")
        cells += [_percent(None if late is None else late / lookups), _percent(foreseen.get("miss_recall"))]
    if row.timing is not None:
        rate = row.timing.tokens_per_second
        share = row.timing.stall_s / row.timing.total_s if row.timing.total_s else 0.0
        cells += ["-" if rate is None else f"{rate:.1f}", f"{share:.0%}"]
    return cells


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _bound(rows: Sequence["Row"]) -> str:
    """The best that any prefetcher could make of the best policy, for each capacity."""
    parts = []
    for capacity in dict.fromkeys(row.capacity for row in rows):
        best = max((row for row in rows if row.capacity == capacity), key=lambda row: row.hit_rate)
        rate = best.timing.bound_tokens_per_second if best.timing else None
        if rate is not None:
            parts.append(f"{rate:.1f} tok/s at {capacity:.3g} ({best.policy})")
    return f"bound T* with every transfer hidden: {', '.join(parts)}" if parts else ""
