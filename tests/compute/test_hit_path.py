"""The short way of a token whose experts are all resident: the same bits and counters as the long way."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import compute.stage
from compute import Offloaded, offload
from compute.policies import named
from compute.policies.base import CacheShape
from compute.residency import Residency
from compute.slot_table import SlotTable
from protocol.errors import ModelError

SHAPE = CacheShape(num_layers=3, num_experts=4, top_k=2, num_slots=6)
COUNTERS = ("hits", "late", "misses", "evictions", "prefetch_issued", "prefetch_used")


@pytest.fixture(scope="module")
def resident(store_4bit: Path) -> Iterator[Offloaded]:
    with offload(store_4bit, slots=192, threads=1, dtype="bfloat16", predictor="none") as offloaded:
        yield offloaded


@torch.no_grad()
def logits_of(offloaded: Offloaded, num_tokens: int = 12) -> Tensor:
    """[num_tokens, vocab]: token after token, each with the whole cache before it."""
    tokens = torch.arange(100, 100 + num_tokens).view(1, -1)
    cache, rows = None, []
    for place in range(num_tokens):
        answer = offloaded.model(
            input_ids=tokens[:, place : place + 1], past_key_values=cache, use_cache=True
        )
        cache = answer.past_key_values
        rows.append(answer.logits[0, -1])
    return torch.stack(rows)


def counters_of(offloaded: Offloaded) -> list[object]:
    return [offloaded.report()[name] for name in COUNTERS]


def test_the_short_way_gives_the_bits_of_the_long_way(resident: Offloaded) -> None:
    logits_of(resident)
    short = logits_of(resident)
    hit_path, resident.stage._hit_path = resident.stage._hit_path, None
    try:
        assert torch.equal(short, logits_of(resident))
    finally:
        resident.stage._hit_path = hit_path


def test_a_token_whose_experts_are_resident_takes_the_short_way_and_says_nothing(
    resident: Offloaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits_of(resident)
    before = resident.report()

    def refuse(*_: object) -> None:
        raise AssertionError("the long way was taken")

    monkeypatch.setattr(compute.stage, "group", refuse)
    monkeypatch.setattr(resident.stage._transport, "submit", refuse)
    logits_of(resident)
    after = resident.report()
    assert after["hits"] == before["hits"] + 12 * 6 * 4  # type: ignore[operator]
    assert after["misses"] == before["misses"]


def test_with_few_slots_both_ways_count_the_same(store_4bit: Path) -> None:
    found = []
    for is_short in (True, False):
        with offload(store_4bit, slots=40, threads=1, lookahead=1) as offloaded:
            if not is_short:
                offloaded.stage._hit_path = None
            logits = logits_of(offloaded, 24)
            found.append((logits, offloaded.report()["lookups"]))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] == 24 * 6 * 4


def test_all_hits_are_counted_and_shown_to_the_policy_as_any_others() -> None:
    tables = [Residency(SHAPE.num_slots, SHAPE.top_k, named("lru", SHAPE)) for _ in range(2)]
    for table in tables:
        for layer, keys in ((0, [0, 3]), (1, [4, 5])):
            for _, slot in table.access(layer, keys, layer).admitted:
                table.landed(slot)
    pairs = dict(tables[0].access(0, [0, 3], 3).hits)
    slots = tables[1].slots_of(np.array([3, 0]))
    tables[1].note_hits(0, [0, 3])
    assert slots is not None and slots.tolist() == [pairs[3], pairs[0]]
    assert tables[0].counters == tables[1].counters
    assert [t.policy.choose_victims(4, set()) for t in tables] == [[4, 5, 0, 3]] * 2


def test_a_step_with_an_absent_expert_is_no_step_of_hits() -> None:
    table = Residency(SHAPE.num_slots, SHAPE.top_k, named("lru", SHAPE))
    for _, slot in table.access(0, [0, 3], 0).admitted:
        table.landed(slot)
    assert [table.slots_of(np.array(keys)) for keys in ([0, 1], [3, 11])] == [None, None]


def test_who_left_is_not_found_any_more_and_keys_beyond_are_nobody_s() -> None:
    table = SlotTable()
    assert table.find(np.array([0])) is None
    table.enter(5, 2)
    table.enter(900, 0)
    assert table.find(np.array([900, 5])).tolist() == [0, 2]  # type: ignore[union-attr]
    assert table.find(np.array([5, 100_000])) is None
    table.leave(5)
    assert table.find(np.array([900, 5])) is None


@torch.no_grad()
@pytest.mark.parametrize("chosen", [[0, 1, 2, 32], [0, 1, 2, -1]])
def test_a_choice_that_is_no_expert_is_refused_although_all_keys_are_resident(
    resident: Offloaded, chosen: list[int]
) -> None:
    logits_of(resident)
    module = resident.moe_layers[0].experts
    hidden = torch.zeros(1, resident.model.config.hidden_size, dtype=torch.bfloat16)
    with pytest.raises(ModelError, match="expert parallelism"):
        resident.stage.run_layer(module, 0, hidden, torch.tensor([chosen]), torch.ones(1, 4))
