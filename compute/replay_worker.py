"""A process that replays cells for another one: `python -P -m compute.replay_worker`.

Reads a JSON list (a Cell) a line from its standard input, and answers each with
[slots, lookups, misses, evictions, seconds, foreseen] or with a sentence; its input's end is its
own. Not a `multiprocessing` worker, which would import the caller's script again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from compute.layer_steps import LayerSteps, layer_steps
from compute.policies import told
from compute.prediction_replay import replay_steps
from compute.replay import Outcome, Scope, num_slots_of, replay
from compute.timing_model import Link
from compute.trace_file import read

Foreseen = dict[str, int | float | None]

#: How long a worker may take to end once its input has.
PATIENCE_S = 10.0


class Foresight(NamedTuple):
    """What looks ahead in a replay. `link` is (bytes per second, bytes of an expert, us of a layer)."""

    predictor: str
    lookahead: int
    link: tuple[float, float, float] | None = None


class Cell(NamedTuple):
    """One replay. `capacity` is a fraction of the experts; `num_tokens` cuts the trace (None: all of it)."""

    trace: Path
    policy: str
    capacity: float
    scope: Scope = Scope.GLOBAL
    num_tokens: int | None = None
    foresight: Foresight | None = None


class Replayed(NamedTuple):
    """What came of a cell; `slots` are those of all caches together.

    With foresight `foreseen` are the figures of `PredictedOutcome`, and what came late counts as
    missed in `outcome`.
    """

    slots: int
    outcome: Outcome
    foreseen: Foreseen | None = None


def replay_cell(cell: Cell) -> Replayed:
    """Raises ValueError for a trace, a policy or a capacity that cannot be used.

    Whatever a user's own policy raises is such a ValueError.
    """
    try:
        return _replay(cell)
    except ValueError:
        raise
    except Exception as error:
        if ":" not in cell.policy:
            raise
        raise ValueError(f'policy "{cell.policy}" failed in the replay: {told(error)}') from error


def _replay(cell: Cell) -> Replayed:
    steps = _steps(cell.trace, cell.num_tokens)
    num_slots = num_slots_of(cell.capacity, steps, cell.scope)
    num_caches = 1 if cell.scope is Scope.GLOBAL else steps.num_layers
    if cell.foresight is None:
        return Replayed(num_slots * num_caches, replay(steps, cell.policy, num_slots, cell.scope))
    predictor, lookahead, link = cell.foresight
    outcome = replay_steps(
        steps, cell.policy, predictor, lookahead, num_slots, cell.scope, Link(*link) if link else None
    )
    counters = outcome.counters
    as_plain = Outcome(counters.lookups, counters.late + counters.misses, counters.evictions, outcome.seconds)
    return Replayed(num_slots * num_caches, as_plain, outcome.as_json())


@lru_cache(maxsize=1)
def _steps(trace: Path, num_tokens: int | None) -> LayerSteps:
    """A trace as layer-steps; kept for the next cell, which is mostly of the same trace."""
    whole = read(trace)
    return layer_steps(whole if num_tokens is None else whole.first(num_tokens))


class ReplayWorker:
    """The caller's side of one such process. One cell at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a terminal's Ctrl-C is the caller's, who ends us
        )

    def replay(self, cell: Cell) -> Replayed:
        """As `replay_cell`, in the other process. RuntimeError where that has died."""
        assert self._process.stdin and self._process.stdout
        question = [str(cell.trace), cell.policy, cell.capacity, cell.scope.value, *cell[4:]]
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"the process that replayed {cell.trace} under {cell.policy} has died")
        answer = json.loads(line)
        if isinstance(answer, str):
            raise ValueError(answer)
        return Replayed(answer[0], Outcome(*answer[1:5]), answer[5])

    def __enter__(self) -> ReplayWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.kill()
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def _answer(line: str) -> list[int | float | Foreseen | None] | str:
    trace, policy, capacity, scope, num_tokens, foresight = json.loads(line)
    ahead = None if foresight is None else Foresight(*foresight)
    try:
        result = replay_cell(Cell(Path(trace), policy, capacity, Scope(scope), num_tokens, ahead))
    except ValueError as error:
        return str(error)
    outcome = result.outcome
    counted = (outcome.lookups, outcome.misses, outcome.evictions, outcome.seconds)
    return [result.slots, *counted, result.foreseen]


def main() -> None:
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_answer(line)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
