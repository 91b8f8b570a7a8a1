"""Replay with prefetch: what cache, predictor and prefetcher would have made of a trace.

Drives the live runtime's own slot table, planner, policy and predictor, in the stage's order: all
experts of a layer-step are looked up at once, overdue guesses are cancelled, then the predictor
is asked and guesses get slots. When they arrive is `ModelledLink`'s rule. Unlike a live run it
scores every prediction, also where there was no room for a guess.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from compute import policies, predictors
from compute.layer_steps import LayerSteps, Pass, Step, layer_steps
from compute.modelled_link import ModelledLink, Place
from compute.policies.base import CacheShape
from compute.prediction_outcome import PredictedOutcome, total
from compute.predictors.base import Prediction, RoutingShape
from compute.predictors.recorded import Recorded
from compute.predictors.scored import Score, Scored
from compute.prefetch import PrefetchPlanner
from compute.replay import Scope, num_slots_of, wants_probs
from compute.residency import Access, Residency
from compute.trace import Trace

if TYPE_CHECKING:
    from compute.timing_model import Link


def replay_with_predictor(
    trace: Trace,
    policy: str,
    predictor: str,
    lookahead: int,
    capacity: float,
    scope: Scope = Scope.GLOBAL,
    timing: Link | None = None,
) -> PredictedOutcome:
    """Replay `trace` under a policy's and a predictor's specs. `capacity` is a fraction of the experts.

    Raises ValueError (one sentence) for a wrong spec, a wrong capacity, or a gate that the trace
    does not hold.
    """
    steps = layer_steps(trace)
    return replay_steps(
        steps, policy, predictor, lookahead, num_slots_of(capacity, steps, scope), scope, timing
    )


def replay_steps(
    steps: LayerSteps,
    policy: str,
    predictor: str,
    lookahead: int,
    num_slots: int,
    scope: Scope = Scope.GLOBAL,
    timing: Link | None = None,
) -> PredictedOutcome:
    """As `replay_with_predictor`, for a trace grouped already; `num_slots` are those of one cache.

    With a share for each layer the prefetcher's budget is each share's own.
    """
    shape = RoutingShape(steps.num_layers, steps.num_experts, steps.top_k)
    if not lookahead:
        predictor = predictors.NONE
    foreseer = predictors.named(predictor, shape, lookahead, recorded=Recorded.of(steps))
    shares = [_Share.of(part, policy, num_slots, lookahead) for part in _parts(steps, scope)]
    play = _Play(steps, shares, Scored(foreseer) if foreseer else None, ModelledLink.of(timing))
    begin = time.perf_counter()
    for each in steps.passes():
        play.run_pass(each)
    return play.outcome(timing is not None, time.perf_counter() - begin)


def _parts(steps: LayerSteps, scope: Scope) -> Iterator[LayerSteps]:
    """What each cache will see."""
    if scope is Scope.GLOBAL:
        yield steps
        return
    for layer in range(steps.num_layers):
        yield steps.of_layer(layer)


@dataclass(frozen=True, slots=True)
class _Share:
    """One cache: its slot table, its prefetcher, and the steps that it serves."""

    steps: LayerSteps
    residency: Residency
    planner: PrefetchPlanner

    @classmethod
    def of(cls, steps: LayerSteps, policy: str, num_slots: int, lookahead: int) -> _Share:
        shape = CacheShape(steps.num_layers, steps.num_experts, steps.top_k, num_slots)
        residency = Residency(num_slots, steps.top_k, policies.named(policy, shape, steps.future))
        return cls(steps, residency, PrefetchPlanner(steps.num_experts, steps.top_k, 1, lookahead))

    @property
    def has_everything(self) -> bool:
        return self.residency.num_used == self.steps.num_layers * self.steps.num_experts


@dataclass(slots=True)
class _Play:
    """The stage of a replay: one layer-step after the other."""

    steps: LayerSteps
    shares: list[_Share]
    predictor: Scored | None
    link: ModelledLink
    clock: int = 0
    _first_key: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._first_key = [share.steps.first_layer * self.steps.num_experts for share in self.shares]

    def run_pass(self, each: Pass) -> None:
        for share in self.shares:
            share.residency.policy.begin_pass(each.num_tokens, each.is_new_sequence)
        if self.predictor:
            self.predictor.begin_pass(each.num_tokens, each.is_new_sequence)
        for step in each.steps:
            self.clock = (each.number + 1) * self.steps.num_layers + step.layer
            self._run(each.number, step)

    def outcome(self, is_timed: bool, seconds: float) -> PredictedOutcome:
        tables = [share.residency for share in self.shares]
        return PredictedOutcome(
            counters=total([table.counters for table in tables]),
            score=self.predictor.score if self.predictor else Score(),
            wasted=sum(table.wasted_now(self.clock) for table in tables),
            num_tokens=self.steps.trace.num_tokens,
            stall_s=self.link.stall_s if is_timed else None,
            total_s=self.link.total_s if is_timed else None,
            seconds=seconds,
        )

    def _run(self, pass_number: int, step: Step) -> None:
        number = self._share_of(step.layer)
        share, first_key = self.shares[number], self._first_key[number]
        own = Step(step.layer - share.steps.first_layer, [key - first_key for key in step.keys])
        policy = share.residency.policy
        probs = share.steps.probs(pass_number, own) if wants_probs(policy, share.steps) else None
        access = share.residency.access(own.layer, own.keys, self.clock, probs)
        self._fetch(number, access)
        if self.predictor:
            self._look_ahead(self.predictor, step, number, set(own.keys))
        for cache, slot in self.link.compute():
            self.shares[cache].residency.landed(slot)

    def _fetch(self, number: int, access: Access) -> None:
        """Overdue guesses are dropped, and the step's own experts come."""
        residency = self.shares[number].residency
        for slot in residency.cancel_overdue(self.clock):
            self.link.drop((number, slot))
            residency.dropped(slot)
        late = [(number, slot) for _, slot in access.late]
        self.link.wait(len(access.admitted) + len(access.passing), late)
        for _, slot in [*access.late, *access.admitted]:
            residency.landed(slot)

    def _look_ahead(self, predictor: Scored, step: Step, current: int, keys: set[int]) -> None:
        first_key = step.layer * self.steps.num_experts
        chosen = [key - first_key for key in step.keys]
        predictor.observe(step.layer, chosen)
        predictions = predictor.predict(step.layer, None, chosen)
        if len(self.shares) == 1:
            self._prefetch(current, predictions, step.layer, keys)
            return
        for prediction in predictions:
            held = keys if prediction.layer == current else set[int]()
            self._prefetch(prediction.layer, [prediction], step.layer, held)

    def _prefetch(self, number: int, predictions: list[Prediction], layer: int, held: set[int]) -> None:
        """Give slots of one cache to guesses; `layer` is the running one, `held` are its keys there."""
        share, clock = self.shares[number], self.clock
        if not predictions or share.has_everything or not share.planner.may_ask(share.residency, clock):
            return
        first_layer = share.steps.first_layer
        own = [Prediction(prediction.layer - first_layer, prediction.experts) for prediction in predictions]
        plan = share.planner.plan(own, layer - first_layer, clock, share.residency)
        deadline_of = dict(plan.wanted)
        for key, slot in share.residency.speculate(plan.wanted, plan.held | held, clock).coming:
            place: Place = (number, slot)
            self.link.ask(place, deadline_of[key])

    def _share_of(self, layer: int) -> int:
        return layer if len(self.shares) > 1 else 0
