"""Stages 2 and 3 with everything real but the device: loader, arena, model, policy, link; stock's tokens.

The device's kernels run at once on the CPU (`support.host_device`), a graph is a tape of operators:
what is tested is what the host does beside them. A device that runs behind, and every order of
events, is tests/compute/test_following.py's.
"""

import gc
import os
import signal
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from support.fake_driver import FakeDriver
from support.greedy import PROMPT, Tokens, greedy
from support.host_device import blob_at, host_devices
from support.token_tape import Tape, TapeRecording
from torch import Tensor
from transformers import AutoModelForCausalLM, StaticCache

from compute.assembly import assemble
from compute.beside.follower import Launched
from compute.beside.words import IN_SLOT
from compute.cache_folder import Quantization
from compute.offloaded import Offloaded
from compute.predictors.base import Prediction
from compute.predictors.gate import GateLookahead
from compute.recording import Recording
from compute.settings import Settings
from launch.bench.routing import impose, sweep
from protocol.errors import ModelError, SidestageError

TOP_K, NUM_KEYS = 4, 192


def offload_to(store: Path, driver: FakeDriver, tape: Tape | None = None, **named: object) -> Offloaded:
    words: dict[str, object] = {
        "quantization": Quantization(),
        "ram": None,
        "slots": 48,
        "vram": None,
        "arrangement": "auto",
        "link": None,
        "policy": "lru",
        "predictor": "gate",
        "lookahead": 1,
        "dtype": "auto",
        "device": "auto",
        "threads": 1,
        "connect": None,
        "stage": 2,
    }
    settings = Settings(**{**words, **named})  # type: ignore[arg-type]
    with ExitStack() as opened:
        devices = host_devices(driver, tape)
        parts = assemble(str(store), settings, 30.0, Recording(None, None), opened, devices)
        return Offloaded(parts, opened.pop_all(), 30.0)


@pytest.fixture(scope="module")
def stock_tokens(shipped_model: Path) -> Tokens:
    torch.set_num_threads(1)
    return greedy(AutoModelForCausalLM.from_pretrained(shipped_model, experts_implementation="grouped_mm"))


@pytest.fixture(scope="module")
def static_tokens(shipped_model: Path) -> Tokens:
    """Attention over a static cache rounds in its own way."""
    torch.set_num_threads(1)
    stock = AutoModelForCausalLM.from_pretrained(shipped_model, experts_implementation="grouped_mm")
    stock.generation_config.cache_implementation = "static"
    stock.generation_config.disable_compile = True
    return greedy(stock)


SETTINGS = [
    (TOP_K, "lru", "none", 0),
    (24, "reuse-distance", "gate", 2),
    (48, "lfu-aged", "gate+st-moe", 1),
    (NUM_KEYS, "lru", "gate", 1),
]


@pytest.mark.parametrize(("slots", "policy", "predictor", "lookahead"), SETTINGS)
def test_stage_2_gives_stock_tokens(
    store_none: Path, stock_tokens: Tokens, slots: int, policy: str, predictor: str, lookahead: int
) -> None:
    driver = FakeDriver(rate=20e9)
    named = {"slots": slots, "policy": policy, "predictor": predictor, "lookahead": lookahead}
    with offload_to(store_none, driver, **named) as offloaded:
        empty = offloaded.report()
        assert greedy(offloaded.model) == stock_tokens
        report = offloaded.report()
    assert empty["slots_used"] == 0, "a slot on loan holds nobody"
    assert report["stage"] == 2 and report["arrangement"] == "pinned"
    check_counters(report, slots, lookahead)
    assert not driver.locked, "something stayed page-locked"


@pytest.mark.parametrize(("slots", "policy", "predictor", "lookahead"), SETTINGS)
def test_stage_3_gives_the_tokens_of_a_static_cache_out_of_recordings(
    store_none: Path, static_tokens: Tokens, slots: int, policy: str, predictor: str, lookahead: int
) -> None:
    driver, tape = FakeDriver(rate=20e9), Tape()
    named = {"slots": slots, "policy": policy, "predictor": predictor, "lookahead": lookahead, "stage": 3}
    with offload_to(store_none, driver, tape, **named) as offloaded:
        assert greedy(offloaded.model) == static_tokens
        report = offloaded.report()
    assert report["stage"] == 3
    assert report["graph_replays"] == tape.num_replayed > 0
    check_counters(report, slots, lookahead)
    assert not driver.locked, "something stayed page-locked"


def check_counters(report: dict[str, object], slots: int, lookahead: int) -> None:
    """The device has found, brought and been told ahead of need."""
    figures = {name: value for name, value in report.items() if isinstance(value, int | float)}
    assert figures["lookups"] == figures["hits"] + figures["late"] + figures["misses"]
    assert figures["hits"] > 0
    is_whole = slots == NUM_KEYS
    assert (figures["experts_landed"] > 0) == (figures["evictions"] > 0) == (not is_whole)
    assert (figures["prefetch_used"] > 0) == (lookahead > 0)


def test_whoever_watches_sees_every_layer_step_and_the_tokens_stay(
    store_none: Path, static_tokens: Tokens
) -> None:
    tape, seen = Tape(), []
    with offload_to(store_none, FakeDriver(rate=20e9), tape, stage=3) as offloaded:
        greedy(offloaded.model)
        num_before = tape.num_replayed
        offloaded.stage.observers.append(lambda layer, index, *rest: seen.append((layer, len(index))))
        assert greedy(offloaded.model) == static_tokens
        assert tape.num_replayed == num_before, "a recording runs past whoever watches"
    num_layers = 6
    assert len(seen) == (10 + 4) * num_layers
    assert [layer for layer, _ in seen] == list(range(num_layers)) * 14


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ({"arrangement": "auto", "ram": 2 * 2**20}, "the arrangement is staged"),
        ({"policy": "reuse-distance-probs"}, "hears the router's whole distribution"),
    ],
)
def test_what_stands_in_the_way_of_stage_3_is_said_and_stage_1_runs(
    store_none: Path, stock_tokens: Tokens, named: dict[str, object], reason: str
) -> None:
    driver = FakeDriver(rate=20e9)
    with offload_to(store_none, driver, **{"stage": 3, **named}) as offloaded:
        assert greedy(offloaded.model) == stock_tokens
        assert offloaded.report()["stage"] == 1
        (notice,) = (notice for notice in offloaded.notices if "--stage 3" in notice)
    assert "stage 1 runs instead" in notice and reason in notice
    assert not driver.locked


def test_a_device_that_does_not_read_host_memory_in_place_is_a_reason(store_none: Path) -> None:
    with offload_to(store_none, FakeDriver(reads_in_place=False), stage=2) as offloaded:
        assert "does not read page-locked memory" in "".join(offloaded.notices)
        assert offloaded.report()["stage"] == 1


@pytest.mark.parametrize("expert", [32, -1])
def test_a_router_that_names_no_expert_is_an_error(store_none: Path, expert: int) -> None:
    with offload_to(store_none, FakeDriver(rate=20e9), stage=2) as offloaded:
        module = offloaded.moe_layers[3].experts
        hidden, weights = torch.zeros(1, 192, dtype=torch.bfloat16), torch.ones(1, TOP_K)
        offloaded.stage.begin_pass(1, False)
        with torch.no_grad(), pytest.raises(ModelError, match=f"chose expert {expert} of a layer with 32"):
            module(hidden, torch.tensor([[0, expert, 1, 2]]), weights)


def test_a_device_that_stands_still_is_an_error_that_names_the_setting(store_none: Path) -> None:
    with offload_to(store_none, FakeDriver(rate=20e9), stage=2) as offloaded:
        beside = offloaded.stage.beside
        assert beside is not None
        beside._follower._timeout_s = 0.05
        beside.begin_pass(1000 * 6, 1, False)
        beside._follower.launched(Launched(0, 1000 * 6, 1, TOP_K))
        with pytest.raises(RuntimeError, match=r"has not run a layer-step within 0.05 s .*--timeout"):
            beside.catch_up()
        beside._follower._queue.clear()


def test_a_killed_loader_is_not_missed(store_none: Path, stock_tokens: Tokens) -> None:
    with offload_to(store_none, FakeDriver(rate=20e9), stage=2) as offloaded:
        client = offloaded.stage._transport._client  # type: ignore[attr-defined]
        os.kill(client.loader_pid, signal.SIGKILL)
        assert greedy(offloaded.model) == stock_tokens
        assert client.num_restarts == 0


def test_with_a_slot_for_every_expert_each_comes_once(store_none: Path) -> None:
    with offload_to(store_none, FakeDriver(rate=20e9), slots=NUM_KEYS, stage=2) as offloaded:
        greedy(offloaded.model)
        before = offloaded.report()
        greedy(offloaded.model)
        after = offloaded.report()
    assert before["experts_in_place"] > 0  # type: ignore[operator]
    for name in ("misses", "experts_in_place"):
        assert after[name] == before[name], name


# --- what goes wrong in the middle ----------------------------------------------------------------


@contextmanager
def failing(kernel: object, name: str, which: int, error: Exception) -> Iterator[None]:
    """One call of the method raises instead of doing anything."""
    method, calls = getattr(kernel, name), []

    def fail(*args: object, **named: object) -> object:
        calls.append(name)
        if len(calls) == which:
            raise error
        return method(*args, **named)

    setattr(kernel, name, fail)
    try:
        yield
    finally:
        setattr(kernel, name, method)
    assert len(calls) >= which


def test_memory_that_runs_out_behind_a_look_up_leaves_slots_and_experts_in_step(
    store_none: Path, stock_tokens: Tokens
) -> None:
    with offload_to(store_none, FakeDriver(rate=20e9), stage=2) as offloaded:
        kernel = offloaded.stage._kernel
        for which in (5, 20, 40):
            full = torch.OutOfMemoryError("full")
            with failing(kernel, "run_at", which, full), pytest.raises(torch.OutOfMemoryError):
                greedy(offloaded.model)
        assert greedy(offloaded.model) == stock_tokens
        assert_tables_agree(offloaded)


def test_a_launch_that_fails_between_look_up_and_copy_is_final(store_none: Path) -> None:
    with offload_to(store_none, FakeDriver(rate=20e9), stage=2) as offloaded:
        assert offloaded.stage.beside
        resolver = offloaded.stage.beside._path._resolver
        error = RuntimeError("no such launch")
        with failing(resolver, "gather", 5, error), pytest.raises(RuntimeError, match="no such launch"):
            greedy(offloaded.model)
        lookups = offloaded.report()["lookups"]
        with pytest.raises(SidestageError, match="close it and offload it again"):
            greedy(offloaded.model)
        assert offloaded.report()["lookups"] == lookups


def test_a_layer_that_runs_twice_for_a_token_is_not_recorded(store_none: Path) -> None:
    with offload_to(store_none, FakeDriver(rate=20e9), Tape(), stage=3) as offloaded, torch.no_grad():
        beside, module = offloaded.stage.beside, offloaded.moe_layers[0].experts
        hidden, weights = torch.zeros(1, 192, dtype=torch.bfloat16), torch.ones(1, TOP_K)
        offloaded.stage.begin_pass(1, False)
        assert beside
        with beside.recording(), pytest.raises(RuntimeError, match="twice for one token"):
            for _ in range(2):
                module(hidden, torch.tensor([[0, 1, 2, 3]]), weights)


def test_a_replay_whose_answer_finds_no_memory_is_followed_all_the_same(
    store_none: Path, static_tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    tape = Tape()
    with offload_to(store_none, FakeDriver(rate=20e9), tape, stage=3) as offloaded:
        assert greedy(offloaded.model) == static_tokens
        with monkeypatch.context() as patched:
            replay = TapeRecording.replay
            patched.setattr(TapeRecording, "replay", lambda tape: dict.fromkeys(replay(tape), Uncopied()))
            with pytest.raises(torch.OutOfMemoryError):
                greedy(offloaded.model)
        assert greedy(offloaded.model) == static_tokens
        assert_tables_agree(offloaded)


class Uncopied:
    def clone(self) -> Tensor:
        raise torch.OutOfMemoryError("full")


def assert_tables_agree(offloaded: Offloaded) -> None:
    """Every resident's slot holds the bytes of its frame."""
    beside = offloaded.stage.beside
    assert beside
    beside.catch_up()
    table, stride = beside._follower._table, offloaded.stage._manifest.layout.stride
    for key in offloaded.stage.resident_keys():
        slot = int(table._table[key])
        assert slot & IN_SLOT
        assert torch.equal(blob_at(slot & ~IN_SLOT, stride), blob_at(int(table._frames[key]), stride)), key


def test_an_interrupt_that_cut_an_order_in_two_is_final_in_stage_3_as_well(
    store_none: Path, static_tokens: Tokens
) -> None:
    with offload_to(store_none, FakeDriver(rate=20e9), Tape(), stage=3) as offloaded:
        assert greedy(offloaded.model) == static_tokens
        cache = StaticCache(config=offloaded.model.config, max_cache_len=16)
        token = torch.tensor([[5]])
        with torch.no_grad():
            for _ in range(4):
                offloaded.model(token, past_key_values=cache)
            offloaded.stage.supply._is_torn = True
            with pytest.raises(SidestageError, match="close it and offload it again"):
                offloaded.model(token, past_key_values=cache)


def test_a_model_goes_on_after_a_router_that_named_no_expert(store_none: Path, stock_tokens: Tokens) -> None:
    with offload_to(store_none, FakeDriver(rate=20e9), stage=2) as offloaded:
        module = offloaded.moe_layers[3].experts
        hidden, weights = torch.zeros(1, 192, dtype=torch.bfloat16), torch.ones(1, TOP_K)
        for _ in range(2):
            offloaded.stage.begin_pass(1, False)
            with torch.no_grad(), pytest.raises(ModelError, match="chose expert 32"):
                module(hidden, torch.tensor([[0, 32, 1, 2]]), weights)
        assert greedy(offloaded.model) == stock_tokens
        assert_tables_agree(offloaded)


def test_an_inner_model_that_nobody_announced_begins_a_pass_of_its_own(store_none: Path) -> None:
    with offload_to(store_none, FakeDriver(rate=20e9), stage=2) as offloaded, torch.no_grad():
        inner = offloaded.model.model
        first = inner(PROMPT[:, :4], use_cache=False).last_hidden_state
        again = inner(PROMPT[:, :4], use_cache=False).last_hidden_state
        assert torch.equal(first, again)
        assert_tables_agree(offloaded)


def gate_of(offloaded: Offloaded) -> GateLookahead:
    ahead = offloaded.stage._ahead
    assert ahead and ahead.gate
    return ahead.gate


def test_a_prompt_is_looked_ahead_of_from_its_first_layer(
    store_none: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with offload_to(store_none, FakeDriver(rate=20e9), stage=2) as offloaded, torch.no_grad():
        gate = gate_of(offloaded)
        asked, predict = [], gate.predict

        def note(layer: int, *rest: object) -> list[Prediction]:
            predictions = predict(layer, *rest)  # type: ignore[arg-type]
            asked.append((layer, bool(predictions)))
            return predictions

        monkeypatch.setattr(gate, "predict", note)
        offloaded.model(torch.arange(12)[None])
        assert dict(asked)[0], "the residual of layer 0 was forgotten before it was asked for"


def test_where_every_expert_has_a_slot_no_gate_is_asked_by_the_host_and_all_come_to_stay(
    store_none: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with offload_to(store_none, FakeDriver(rate=20e9), slots=NUM_KEYS) as offloaded, torch.no_grad():
        monkeypatch.setattr(gate_of(offloaded), "_ask", lambda *_: pytest.fail("the host asked a gate"))
        for layer in offloaded.moe_layers:
            told = sweep(32, TOP_K)
            impose(layer.experts, lambda num_rows, told=told: told[:num_rows])
        for _ in range(3):
            offloaded.model(torch.arange(8)[None], use_cache=False)
        assert offloaded.report()["slots_used"] == NUM_KEYS


def test_a_report_has_all_that_the_device_has_done(store_none: Path) -> None:
    with offload_to(store_none, FakeDriver(rate=20e9), stage=2) as offloaded, torch.no_grad():
        assert offloaded.stage.beside
        follower = offloaded.stage.beside._follower
        follow, follower.follow = follower.follow, lambda: None  # type: ignore[method-assign]
        offloaded.model(PROMPT[:, :1], use_cache=False)
        follower.follow = follow  # type: ignore[method-assign]
        assert offloaded.report()["lookups"] == 6 * TOP_K


def test_a_model_that_is_forgotten_in_stage_3_goes_and_takes_its_locks_along(store_none: Path) -> None:
    driver = FakeDriver(rate=20e9)
    offloaded = offload_to(store_none, driver, Tape(), stage=3)
    greedy(offloaded.model)
    assert offloaded.report()["graph_replays"]
    model = weakref.ref(offloaded.model)
    del offloaded
    gc.collect()
    assert model() is None
    assert not driver.locked
