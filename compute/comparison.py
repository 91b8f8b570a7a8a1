"""Comparison: replays of many (trace, policy, capacity, scope) cells, on all cores if asked.

Adds lru and belady to every row of cells, as the ends of the scale on which `gap_closed` is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from compute.replay import Outcome, Scope
from compute.replay_worker import Cell, Foreseen, Replayed, ReplayWorker, replay_cell

#: A gap between lru and belady below this says nothing.
LEAST_GAP = 0.001
FLOOR, CEILING = "lru", "belady"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a cell. `slots` are those of all caches together; `foreseen` is there with foresight."""

    cell: Cell
    slots: int
    outcome: Outcome
    gap_closed: float | None
    foreseen: Foreseen | None = None

    def as_json(self) -> dict[str, str | int | float | None]:
        outcome, ahead = self.outcome, self.cell.foresight
        return {
            "trace": str(self.cell.trace),
            "policy": self.cell.policy,
            "capacity": self.cell.capacity,
            "scope": self.cell.scope.value,
            "slots": self.slots,
            "lookups": outcome.lookups,
            "hits": outcome.hits,
            "misses": outcome.misses,
            "evictions": outcome.evictions,
            "hit_rate": outcome.hit_rate,
            "gap_closed": self.gap_closed,
            "seconds": outcome.seconds,
            "predictor": ahead.predictor if ahead else "none",
            "lookahead": ahead.lookahead if ahead else 0,
            **(self.foreseen or {}),
        }


Progress = Callable[[int, int], None]


def cells_of(
    traces: Iterable[Path],
    policies: Sequence[str],
    capacities: Sequence[float],
    scope: Scope,
    num_tokens: int | None = None,
) -> list[Cell]:
    """Every combination, by trace, then by capacity, then by policy."""
    return [
        Cell(trace, policy, capacity, scope, num_tokens)
        for trace in traces
        for capacity in capacities
        for policy in policies
    ]


def compare(cells: Sequence[Cell], num_processes: int = 1, progress: Progress | None = None) -> list[Result]:
    """Replay every cell; results in the cells' order. `progress(done, of)` after each replay.

    Raises ValueError for a trace, a policy or a capacity that cannot be used.
    """
    wanted = list(dict.fromkeys(cell for given in cells for cell in (*_scale(given), given)))
    wanted.sort(key=lambda cell: (str(cell.trace), cell.num_tokens or 0))
    replayed: dict[Cell, Replayed] = {}
    for cell, result in _replay_all(wanted, num_processes):
        replayed[cell] = result
        if progress:
            progress(len(replayed), len(wanted))
    return [_result(cell, replayed) for cell in cells]


def gap_closed(hit_rate: float, lru: float, belady: float) -> float | None:
    """The share of the way from lru's to belady's hit rate; None where that way is too short."""
    return (hit_rate - lru) / (belady - lru) if belady - lru >= LEAST_GAP else None


def _scale(cell: Cell) -> tuple[Cell, Cell]:
    """The two cells between which this one is read: with nothing prefetched."""
    return cell._replace(policy=FLOOR, foresight=None), cell._replace(policy=CEILING, foresight=None)


def _result(cell: Cell, replayed: dict[Cell, Replayed]) -> Result:
    slots, outcome, foreseen = replayed[cell]
    lru, belady = (replayed[end].outcome.hit_rate for end in _scale(cell))
    return Result(cell, slots, outcome, gap_closed(outcome.hit_rate, lru, belady), foreseen)


def _replay_all(cells: list[Cell], num_processes: int) -> Iterator[tuple[Cell, Replayed]]:
    if num_processes == 1:
        yield from ((cell, replay_cell(cell)) for cell in cells)
        return
    with ExitStack() as stack:
        # The processes end before the threads that wait for them, however this ends.
        threads = stack.enter_context(ThreadPoolExecutor(num_processes))
        idle: SimpleQueue[ReplayWorker] = SimpleQueue()
        for _ in range(min(num_processes, len(cells))):
            idle.put(stack.enter_context(ReplayWorker()))
        cell_of = {threads.submit(_replay_in, idle, cell): cell for cell in cells}
        try:
            for future in as_completed(cell_of):
                yield cell_of[future], future.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def _replay_in(idle: SimpleQueue[ReplayWorker], cell: Cell) -> Replayed:
    """Replay in whichever process is free; there are as many as threads."""
    worker = idle.get()
    try:
        return worker.replay(cell)
    finally:
        idle.put(worker)
