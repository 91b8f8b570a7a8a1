"""The prefetch planner: order, budget, room, and what it says of itself."""

from dataclasses import dataclass, field

from compute.policies import named
from compute.policies.base import CacheShape
from compute.predictors.base import Prediction
from compute.prefetch import PrefetchPlanner
from compute.residency import Residency

NUM_EXPERTS, TOP_K, BLOB = 8, 2, 4096


@dataclass
class Table:
    """A slot table as the planner sees it."""

    num_slots: int = 16
    num_guesses_coming: int = 0
    room: int = 100
    slots: dict[int, int] = field(default_factory=dict)

    def slot_of(self, key: int) -> int | None:
        return self.slots.get(key)

    def speculative_room(self, clock: int) -> int:
        return self.room


def planner(lookahead: int = 2, budget_bytes: int | None = None) -> PrefetchPlanner:
    return PrefetchPlanner(NUM_EXPERTS, TOP_K, BLOB, lookahead, budget_bytes)


NEAR, FAR = Prediction(3, [5, 1]), Prediction(4, [0, 7])


def test_the_earliest_deadline_comes_first_then_the_most_wanted() -> None:
    plan = planner().plan([FAR, NEAR], layer=2, clock=22, table=Table())
    assert plan.wanted == [(29, 23), (25, 23), (32, 24), (39, 24)]


def test_every_predicted_expert_is_held() -> None:
    plan = planner(budget_bytes=0).plan([NEAR, FAR], layer=2, clock=22, table=Table())
    assert plan.held == {29, 25, 32, 39}


def test_no_more_than_the_budget_is_on_its_way() -> None:
    table = Table(num_guesses_coming=2)
    plan = planner(budget_bytes=3 * BLOB + 100).plan([NEAR, FAR], layer=2, clock=22, table=table)
    assert [key for key, _ in plan.wanted] == [29]


def test_without_a_budget_it_is_a_token_s_experts_for_each_layer_ahead() -> None:
    everyone = Prediction(3, list(range(NUM_EXPERTS)))
    plan = planner(lookahead=2).plan([everyone], layer=2, clock=22, table=Table())
    assert len(plan.wanted) == 2 * TOP_K


def test_no_more_is_planned_than_there_is_room_for_guesses() -> None:
    plan = planner().plan([NEAR, FAR], layer=2, clock=22, table=Table(room=1))
    assert [key for key, _ in plan.wanted] == [29]


def test_who_is_there_costs_no_budget_but_is_named_for_the_deadline() -> None:
    table = Table(slots={29: 0, 39: 1})
    plan = planner(budget_bytes=BLOB).plan([NEAR, FAR], layer=2, clock=22, table=table)
    assert plan.wanted == [(29, 23), (25, 23), (39, 24)]


def test_its_counters_add_up() -> None:
    some = planner(budget_bytes=2 * BLOB)
    some.plan([NEAR, FAR], layer=2, clock=22, table=Table(slots={29: 0}))
    counters = some.counters
    assert (counters.predicted, counters.there, counters.planned, counters.over_budget) == (4, 1, 2, 1)


def test_there_is_nothing_to_ask_when_the_budget_is_on_its_way() -> None:
    assert planner(lookahead=1).may_ask(Table(num_guesses_coming=1), clock=0)
    assert not planner(lookahead=1).may_ask(Table(num_guesses_coming=2), clock=0)
    assert not planner(lookahead=1).may_ask(Table(room=0), clock=0)


def test_it_idles_where_a_token_needs_all_slots() -> None:
    assert "needs all 2 slots" in planner().idle_reason(Table(num_slots=2))
    assert planner().idle_reason(Table(num_slots=3)) == ""


def test_it_idles_where_the_budget_holds_no_expert() -> None:
    assert "budget of 100 bytes holds no expert" in planner(budget_bytes=100).idle_reason(Table())


def test_a_residency_is_a_slot_table_and_guesses_never_evict_what_is_predicted() -> None:
    residency = Residency(4, TOP_K, named("lru", CacheShape(6, NUM_EXPERTS, TOP_K, 4)))
    for clock, key in enumerate([29, 0, 1, 2]):
        for _, slot in residency.access(0, [key], clock).admitted:
            residency.landed(slot)
    plan = planner().plan([NEAR, FAR], layer=2, clock=22, table=residency)
    speculation = residency.speculate(plan.wanted, plan.held, clock=22)
    assert [key for key, _ in speculation.coming] == [25, 32]
    assert [key for key, _ in speculation.evicted] == [0, 1]
