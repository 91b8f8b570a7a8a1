"""Advice names what a run can use, and its reason fits the figures."""

import pytest

from compute.timing_model import Link
from launch.lab.advice import Cache, Seen, advise, best_policy, mean_rates

CACHE = Cache(num_layers=10, num_experts=20, top_k=4, slots=50)
#: One lookup in two hits: 2 experts are moved in each layer-step.
SEEN = Seen(num_tokens=100, num_steps=1000, num_lookups=4000)
RATES = {"lru": 0.5, "lfu-aged": 0.6, "belady": 0.9}


def test_the_policy_that_hits_most_is_named_and_the_offline_ones_are_not() -> None:
    advice = advise(CACHE, RATES, SEEN, link=None)
    assert (advice.policy, advice.slots, advice.capacity) == ("lfu-aged", 50, 0.25)
    assert "60.0%" in advice.reason and "belady 90.0%" in advice.reason


def test_a_tie_goes_to_the_simpler_policy() -> None:
    assert best_policy({"reuse-distance": 0.6004, "lru": 0.6, "mine.py:Mine": 0.6009}) == "lru"


def test_there_must_be_a_policy_that_a_run_can_use() -> None:
    with pytest.raises(ValueError, match="none of the policies"):
        best_policy({"belady": 0.9})


def test_with_a_slot_for_every_expert_nothing_is_prefetched() -> None:
    advice = advise(Cache(10, 20, 4, slots=200), {"lru": 0.99}, SEEN, link=None)
    assert advice.lookahead == 0


def test_at_top_k_slots_nothing_can_be_prefetched() -> None:
    assert advise(Cache(10, 20, 4, slots=4), RATES, SEEN, link=None).lookahead == 0


def test_a_slower_link_wants_a_longer_lookahead() -> None:
    near, far = (
        advise(CACHE, {"lru": 0.95}, SEEN, Link(rate, blob_bytes=1000, layer_us=100)).lookahead
        for rate in (20e6, 4e6)
    )
    assert (near, far) == (1, 3)


def test_a_prefetch_that_cannot_gain_is_advised_against() -> None:
    slow, fast = (
        advise(CACHE, RATES, SEEN, Link(rate, blob_bytes=1000, layer_us=100)) for rate in (1e5, 1e10)
    )
    assert slow.lookahead == fast.lookahead == 0
    assert "the link is the limit" in slow.reason and "stalls are rare" in fast.reason


def test_several_traces_count_alike() -> None:
    assert mean_rates([{"lru": 0.2}, {"lru": 0.6}]) == {"lru": pytest.approx(0.4)}


def test_the_shortest_lookahead_of_the_fastest_is_named_where_prefetch_was_replayed() -> None:
    rate_of = {0: 100.0, 1: 149.5, 2: 150.0}
    advice = advise(CACHE, RATES, SEEN, Link(1e6, 1000, 100), rate_of)
    assert advice.lookahead == 1
    assert "149.5 tok/s (100.0 with 0, 150.0 with 2)" in advice.reason
