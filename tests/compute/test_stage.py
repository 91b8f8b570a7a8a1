"""The stage: whatever the order of arrival, slots, policy and prefetch, the bits are grouped_mm's."""

import random
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shuffled_transport import ShuffledTransport
from torch import Tensor, nn
from transformers import OlmoeConfig
from transformers.integrations.moe import grouped_mm_experts_forward
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

from compute.kernels.reference import ReferenceKernel
from compute.look_ahead import LookAhead
from compute.policies import named
from compute.policies.base import CacheShape
from compute.predictors.base import Prediction
from compute.prefetch import PrefetchPlanner
from compute.residency import Residency
from compute.stage import Stage
from protocol.blob import BlobLayout
from protocol.errors import LoaderLostError, ModelError, SidestageError
from protocol.manifest import Manifest, Shard
from protocol.timeline import Timeline

NUM_LAYERS, NUM_EXPERTS, TOP_K, HIDDEN = 3, 8, 3, 32


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def build_layers(dtype: torch.dtype) -> list[nn.Module]:
    torch.manual_seed(0)
    config = OlmoeConfig(
        hidden_size=HIDDEN, intermediate_size=48, num_experts=NUM_EXPERTS, num_experts_per_tok=TOP_K
    )
    layers = [OlmoeExperts(config).to(dtype) for _ in range(NUM_LAYERS)]
    for layer in layers:
        for parameter in layer.parameters():
            parameter.data.normal_(std=0.3)
            parameter.requires_grad_(False)
    return layers


def build_store(layers: list[nn.Module], dtype: str) -> tuple[Manifest, Tensor]:
    """The manifest of a store of the layers' experts, and its blobs, uint8 [num_keys, stride]."""
    parts = [(name, dtype, tuple(p.shape[1:])) for name, p in layers[0].named_parameters()]
    layout = BlobLayout.pack("none", 0, parts)
    num_keys = NUM_LAYERS * NUM_EXPERTS
    blobs = torch.zeros(num_keys, layout.stride, dtype=torch.uint8)
    for key in range(num_keys):
        layer, expert = divmod(key, NUM_EXPERTS)
        for name, parameter in layers[layer].named_parameters():
            segment = layout.segment(name)
            flat = parameter[expert].contiguous().view(torch.uint8).reshape(-1)
            blobs[key, segment.offset : segment.offset + segment.num_bytes] = flat
    shards = (Shard("experts-00000.safetensors", 0, num_keys, 4096),)
    names = tuple(f"layers.{layer}" for layer in range(NUM_LAYERS))
    manifest = Manifest(
        "olmoe", "Olmoe", "test", dtype, False, "", NUM_EXPERTS, TOP_K, names, layout, shards, (0,) * num_keys
    )
    return manifest, blobs


LAYERS = {"float32": build_layers(torch.float32), "bfloat16": build_layers(torch.bfloat16)}
STORES = {dtype: build_store(layers, dtype) for dtype, layers in LAYERS.items()}


class Soothsayer:
    """A predictor that sometimes is right: it knows the routing, and adds noise."""

    name = "soothsayer"

    def __init__(self, routing: dict[int, list[int]], lookahead: int, seed: int) -> None:
        self.lookahead = lookahead
        self.notices = ["it sees the future"]
        self.routing = routing
        self.is_closed = False
        self._random = random.Random(seed)

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        pass

    def observe(self, layer: int, chosen: Sequence[int]) -> None:
        assert list(chosen) == sorted(set(chosen))

    def predict(self, layer: int, residual: Tensor | None, chosen: Sequence[int]) -> list[Prediction]:
        assert list(chosen) == sorted(set(chosen))
        targets = range(layer + 1, min(layer + self.lookahead + 1, NUM_LAYERS))
        return [Prediction(target, self._guess(self.routing.get(target, []))) for target in targets]

    def _guess(self, right: list[int]) -> list[int]:
        experts = [e for e in right if self._random.random() < 0.7]
        experts += [e for e in range(NUM_EXPERTS) if e not in experts and self._random.random() < 0.2]
        return experts

    def close(self) -> None:
        self.is_closed = True


class Show:
    """A stage over a shuffled transport, with everything that takes part in it."""

    def __init__(
        self,
        *,
        dtype: str = "float32",
        num_slots: int = TOP_K,
        num_transit: int = 2,
        policy: str = "lru",
        lookahead: int = 0,
        seed: int = 0,
        eagerness: float = 0.5,
        timeline: Timeline | None = None,
    ) -> None:
        self.manifest, blobs = STORES[dtype]
        self.layers = LAYERS[dtype]
        self.transport = ShuffledTransport(blobs, num_slots, num_transit, seed, eagerness)
        shape = CacheShape(NUM_LAYERS, NUM_EXPERTS, TOP_K, num_slots)
        self.residency = Residency(num_slots, TOP_K, named(policy, shape))
        self.routing: dict[int, list[int]] = {}
        self.predictor = Soothsayer(self.routing, lookahead, seed) if lookahead else None
        ahead = None
        if self.predictor:
            planner = PrefetchPlanner(NUM_EXPERTS, TOP_K, self.manifest.layout.stride, lookahead)
            ahead = LookAhead(self.predictor, planner, self.residency, self.manifest)
        self.stage = Stage(
            manifest=self.manifest,
            residency=self.residency,
            transport=self.transport,
            kernel=ReferenceKernel(self.manifest.layout),
            look_ahead=ahead,
            timeline=timeline,
        )
        self.generator = torch.Generator().manual_seed(seed)
        self.num_lookups = 0
        self.hidden = torch.empty(0)
        self.dtype = getattr(torch, dtype)

    def route(self, num_tokens: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(hidden, index, weights) of every layer of one pass."""
        inputs = []
        for layer in range(NUM_LAYERS):
            hidden = torch.randn(num_tokens, HIDDEN, generator=self.generator).to(self.dtype)
            logits = torch.randn(num_tokens, NUM_EXPERTS, generator=self.generator)
            weights, index = torch.softmax(logits, -1).topk(TOP_K)
            inputs.append((hidden, index, weights.to(self.dtype)))
            self.routing[layer] = index.unique().tolist()
        return inputs

    def run_pass(self, num_tokens: int) -> None:
        """One forward pass; asserts every layer's bits."""
        inputs = self.route(num_tokens)
        self.stage.begin_pass(num_tokens, False)
        for layer, (hidden, index, weights) in enumerate(inputs):
            module = self.layers[layer]
            expected = grouped_mm_experts_forward(module, hidden, index, weights)
            actual = self.stage.run_layer(module, layer, hidden, index, weights)
            assert actual.dtype == expected.dtype
            assert torch.equal(actual, expected), f"layer {layer}, {num_tokens} tokens"
            self.num_lookups += len(index.unique())


@settings(max_examples=120, deadline=None)
@given(
    dtype=st.sampled_from(["float32", "bfloat16"]),
    num_slots=st.integers(TOP_K, NUM_LAYERS * NUM_EXPERTS),
    num_transit=st.integers(1, 3),
    policy=st.sampled_from(["lru", "lfu-aged", "least-stale", "reuse-distance"]),
    lookahead=st.integers(0, 2),
    passes=st.lists(st.sampled_from([1, 1, 1, 2, 3, 17]), min_size=1, max_size=6),
    seed=st.integers(0, 2**16),
    eagerness=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_the_bits_are_those_of_grouped_mm_in_any_order_of_arrival(
    dtype: str,
    num_slots: int,
    num_transit: int,
    policy: str,
    lookahead: int,
    passes: list[int],
    seed: int,
    eagerness: float,
) -> None:
    show = Show(
        dtype=dtype,
        num_slots=num_slots,
        num_transit=num_transit,
        policy=policy,
        lookahead=lookahead,
        seed=seed,
        eagerness=eagerness,
    )
    for num_tokens in passes:
        show.run_pass(num_tokens)
    report = show.stage.report()
    assert report["lookups"] == show.num_lookups
    assert show.num_lookups == show.residency.counters.hits + show.residency.counters.late + int(
        str(report["misses"])
    )


def test_float32_weights_of_bfloat16_rows_are_summed_in_float32() -> None:
    show = Show(dtype="bfloat16", num_slots=4)
    hidden, index, weights = show.route(5)[0]
    for rows in (1, 5):
        args = hidden[:rows], index[:rows], weights[:rows].float()
        actual = show.stage.run_layer(show.layers[0], 0, *args)
        assert torch.equal(actual, grouped_mm_experts_forward(show.layers[0], *args))


def test_a_token_that_names_an_expert_twice_is_computed_in_one_call() -> None:
    show = Show(num_slots=4)
    hidden, _, weights = show.route(1)[0]
    index = torch.tensor([[3, 5, 3]])
    actual = show.stage.run_layer(show.layers[0], 0, hidden, index, weights)
    assert torch.equal(actual, grouped_mm_experts_forward(show.layers[0], hidden, index, weights))


def test_no_tokens_are_no_work() -> None:
    show = Show()
    empty = torch.empty(0, HIDDEN)
    index = torch.empty(0, TOP_K, dtype=torch.int64)
    assert show.stage.run_layer(show.layers[0], 0, empty, index, torch.empty(0, TOP_K)).shape == (0, HIDDEN)
    assert show.transport.orders == []


@pytest.mark.parametrize("num_tokens", [1, 3])
@pytest.mark.parametrize("expert", [NUM_EXPERTS, -1])
def test_an_index_that_is_no_expert_is_refused_and_harms_nothing(expert: int, num_tokens: int) -> None:
    show = Show()
    hidden, index, weights = show.route(num_tokens)[0]
    index[-1, -1] = expert
    with pytest.raises(ModelError, match=f"chose expert {expert} of a layer with 8"):
        show.stage.run_layer(show.layers[0], 0, hidden, index, weights)
    show.run_pass(num_tokens)


def test_a_step_of_hits_says_nothing_to_the_transport() -> None:
    show = Show(num_slots=NUM_LAYERS * NUM_EXPERTS)
    hidden, index, weights = show.route(1)[0]
    for _ in range(3):
        show.stage.run_layer(show.layers[0], 0, hidden, index, weights)
    assert len(show.transport.orders) == 1


def test_a_decode_step_sends_at_most_two_orders() -> None:
    show = Show(num_slots=8, lookahead=2, eagerness=0.2)
    inputs = show.route(1)
    for number in range(20):
        show.stage.begin_pass(1, False)
        for layer, args in enumerate(inputs):
            before = len(show.transport.orders)
            show.stage.run_layer(show.layers[layer], layer, *args)
            sent = show.transport.orders[before:]
            again = [order for order in sent if order.demand and not order.evicted and order is not sent[0]]
            assert len(sent) - len(again) <= 2, number
        inputs = show.route(1)


def test_the_expert_with_the_most_rows_is_asked_for_first() -> None:
    show = Show(num_slots=TOP_K)
    index = torch.tensor([[0, 1, 2], [3, 1, 2], [4, 1, 3], [3, 5, 1], [3, 2, 6]])
    hidden, weights = torch.randn(5, HIDDEN), torch.rand(5, TOP_K)
    show.stage.run_layer(show.layers[0], 0, hidden, index, weights)
    # 0, 1 and 2 are admitted, with 1, 4 and 3 rows; of those that pass, expert 3 has four.
    assert show.transport.demand_order[:4] == [1, 2, 0, 3]


def test_passing_experts_keep_all_transit_slots_busy() -> None:
    show = Show(num_slots=TOP_K, num_transit=3)
    show.run_pass(17)
    assert show.transport.most_busy_transit == 3


def test_without_a_transit_slot_only_a_cache_of_everything_is_allowed() -> None:
    with pytest.raises(ValueError, match="no transit slot"):
        Show(num_slots=4, num_transit=0)
    Show(num_slots=NUM_LAYERS * NUM_EXPERTS, num_transit=0).run_pass(5)


def test_prefetch_turns_misses_into_hits_and_late_ones() -> None:
    without, ahead = Show(num_slots=12, seed=3), Show(num_slots=12, seed=3, lookahead=1)
    for show in (without, ahead):
        for _ in range(40):
            show.run_pass(1)
    few, many = ahead.stage.report(), without.stage.report()
    assert int(str(few["misses"])) < int(str(many["misses"]))
    for name in ("miss_recall", "prediction_recall", "prediction_precision"):
        assert 0 < float(str(few[name])) < 1
        assert many[name] is None
    assert int(str(few["prefetch_used"])) <= int(str(few["prefetch_issued"]))


def test_at_top_k_slots_prefetch_idles_and_says_so() -> None:
    show = Show(num_slots=TOP_K, lookahead=1)
    for _ in range(5):
        show.run_pass(1)
    assert not any(order.prefetch for order in show.transport.orders)
    assert show.stage.notices == [
        "it sees the future",
        "prefetch idles: a single token needs all 3 slots, it works from 4 slots up",
    ]


def test_a_wrong_guess_on_its_way_is_cancelled_when_the_router_has_spoken() -> None:
    show = Show(num_slots=12, lookahead=1, eagerness=0.0)
    for _ in range(10):
        show.run_pass(1)
    assert any(order.cancel for order in show.transport.orders)


def test_the_report_has_the_names_of_the_contract() -> None:
    report = Show().stage.report()
    names = """lookups hits late misses hit_rate prefetch_issued prefetch_used prefetch_wasted_bytes
        miss_recall prediction_recall prediction_precision stall_s bytes_read bytes_transferred
        evictions arrangement kernel policy predictor lookahead slots slots_used frames frames_leased
        frames_sealed reads"""
    assert set(report) == set(names.split())
    assert report["hit_rate"] is None
    assert (report["predictor"], report["lookahead"]) == ("none", 0)
    assert (report["bytes_read"], report["frames"]) == (7, 9)


def test_observers_see_every_layer_step() -> None:
    show = Show(num_slots=6)
    seen: list[tuple[int, Tensor, Tensor, Tensor | None]] = []
    show.stage.observers.append(lambda *step: seen.append(step))
    show.run_pass(2)
    assert [layer for layer, *_ in seen] == [0, 1, 2]
    assert seen[0][1].shape == seen[0][2].shape == (2, TOP_K)
    assert seen[0][3] is None


def test_the_timeline_ends_one_arrow_for_each_expert_that_was_fetched_and_used() -> None:
    timeline = Timeline("compute")
    show = Show(num_slots=NUM_LAYERS * NUM_EXPERTS, timeline=timeline)
    inputs = show.route(1)
    for _ in range(2):
        for layer, args in enumerate(inputs):
            show.stage.run_layer(show.layers[layer], layer, *args)
    events = timeline._events()
    assert sum(event["ph"] == "f" for event in events) == NUM_LAYERS * TOP_K
    assert sum(event["name"].startswith("layer ") for event in events) == 2 * NUM_LAYERS
    assert any(event["name"] == "stall" for event in events)


class Interrupting:
    """A kernel that is interrupted at some of its calls."""

    name = "interrupting"

    def __init__(self, inner: ReferenceKernel, at: set[int]) -> None:
        self.inner, self.at, self.calls = inner, at, 0

    def __call__(self, module: nn.Module, blob: Tensor, rows: Tensor) -> Tensor:
        self.calls += 1
        if self.calls in self.at:
            raise KeyboardInterrupt
        return self.inner(module, blob, rows)


@settings(max_examples=100, deadline=None)
@given(
    at=st.sets(st.integers(1, 60), max_size=5),
    num_slots=st.integers(TOP_K, 12),
    lookahead=st.integers(0, 2),
    eagerness=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 999),
)
def test_an_interrupted_pass_harms_none_that_follows(
    at: set[int], num_slots: int, lookahead: int, eagerness: float, seed: int
) -> None:
    show = Show(num_slots=num_slots, lookahead=lookahead, eagerness=eagerness, seed=seed)
    show.stage._kernel = Interrupting(ReferenceKernel(show.manifest.layout), at)
    num_interrupts = 0
    for num_tokens in [17, 1, 3, 17, 1] * 2:
        try:
            show.run_pass(num_tokens)
        except KeyboardInterrupt:
            num_interrupts += 1
    assert num_interrupts == len(at)
    show.transport.eagerness = 1.0
    show.run_pass(1)
    assert not show.stage.supply._transit.is_busy


def test_an_interrupt_between_table_and_transport_is_told_at_the_next_step() -> None:
    show = Show()

    def interrupted(order: object, clock: int) -> None:
        raise KeyboardInterrupt

    show.transport.submit = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        show.run_pass(1)
    with pytest.raises(SidestageError, match="close it and offload it again"):
        show.run_pass(1)


def test_a_lost_loader_is_final() -> None:
    show = Show()
    patient = show.transport.wait

    def lost(slots: object) -> None:
        raise LoaderLostError("the loader is gone")

    show.transport.wait = lost  # type: ignore[method-assign, assignment]
    with pytest.raises(LoaderLostError, match="the loader is gone"):
        show.run_pass(1)
    show.transport.wait = patient  # type: ignore[method-assign]
    with pytest.raises(LoaderLostError, match="the loader is gone"):
        show.run_pass(1)


def test_closing_closes_predictor_probs_and_transport() -> None:
    show = Show(lookahead=1)
    closed: list[str] = []
    show.stage.router_probs = SimpleNamespace(close=lambda: closed.append("probs"))  # type: ignore[assignment]
    show.stage.close()
    assert show.predictor is not None
    assert show.predictor.is_closed and show.transport.is_closed and closed == ["probs"]
