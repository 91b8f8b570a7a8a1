"""Prefetch: which predicted experts to ask for, in which order, and when not to ask.

Pure: it sees predictions, the clock (layer-steps) and a view of the slot table, and answers with
a list; residency and transport act on it. A guess is cheap to make and dear to be wrong about, so
guesses on their way stay inside a byte budget. Counts what it planned and what it left out.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from compute.predictors.base import Prediction


class SlotTable(Protocol):
    """What the planner may ask of the residency."""

    num_slots: int

    @property
    def num_guesses_coming(self) -> int: ...

    def slot_of(self, key: int) -> int | None: ...

    def speculative_room(self, clock: int) -> int: ...


@dataclass(slots=True)
class PrefetchCounters:
    """Per (layer-step, predicted expert): predicted = there + planned + over_budget."""

    predicted: int = 0
    #: in a slot or on its way already
    there: int = 0
    planned: int = 0
    #: no budget or no room left
    over_budget: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """`wanted`: (key, deadline), most urgent first; those there already are named for their deadline.

    `held`: every predicted expert; none of them leaves for a guess.
    """

    wanted: list[tuple[int, int]]
    held: set[int]


@dataclass(slots=True)
class PrefetchPlanner:
    """At most `budget_bytes` are on their way as guesses at any time.

    Without a budget it is a token's experts for each layer of the lookahead.
    """

    num_experts: int
    top_k: int
    blob_bytes: int
    lookahead: int
    budget_bytes: int | None = None
    counters: PrefetchCounters = field(default_factory=PrefetchCounters)
    _most_coming: int = field(init=False)

    def __post_init__(self) -> None:
        if self.budget_bytes is None:
            self._most_coming = self.top_k * self.lookahead
        else:
            self._most_coming = self.budget_bytes // self.blob_bytes

    def idle_reason(self, table: SlotTable) -> str:
        """Why nothing is ever prefetched into these slots, "" when something may be."""
        if table.num_slots <= self.top_k:
            return (
                f"prefetch idles: a single token needs all {table.num_slots} slots, "
                f"it works from {self.top_k + 1} slots up"
            )
        if self._most_coming < 1:
            return f"prefetch idles: its budget of {self.budget_bytes} bytes holds no expert"
        return ""

    def may_ask(self, table: SlotTable, clock: int) -> bool:
        """Whether a prediction could lead to anything now: a cheap question before a dear one."""
        return self._limit(table, clock) > 0

    def plan(self, predictions: Iterable[Prediction], layer: int, clock: int, table: SlotTable) -> Plan:
        """What to ask for at `layer`'s step `clock`: the earliest deadline first, then the most wanted."""
        wanted: list[tuple[int, int]] = []
        limit = self._limit(table, clock)
        num_there = num_planned = 0
        predicted = self._in_order(predictions, clock - layer)
        for key, deadline in predicted:
            if table.slot_of(key) is not None:
                num_there += 1
            elif num_planned < limit:
                num_planned += 1
            else:
                continue
            wanted.append((key, deadline))
        self.counters.predicted += len(predicted)
        self.counters.there += num_there
        self.counters.planned += num_planned
        self.counters.over_budget += len(predicted) - len(wanted)
        return Plan(wanted, {key for key, _ in predicted})

    def _in_order(self, predictions: Iterable[Prediction], first_step: int) -> list[tuple[int, int]]:
        """(key, deadline) of every predicted expert; `first_step` is the clock at the pass's layer 0."""
        return [
            (prediction.layer * self.num_experts + expert, first_step + prediction.layer)
            for prediction in sorted(predictions, key=lambda prediction: prediction.layer)
            for expert in prediction.experts
        ]

    def _limit(self, table: SlotTable, clock: int) -> int:
        return min(self._most_coming - table.num_guesses_coming, table.speculative_room(clock))
