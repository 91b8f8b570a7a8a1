"""Stages 2 and 3 with everything real but the device: loader, arena, model, policy, link; stock's tokens.

The device's kernels run at once on the CPU (`support.host_device`), a graph is a tape of operators:
what is tested is what the host does beside them. A device that runs behind, and every order of
events, is tests/compute/test_following.py's.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from support.fake_driver import FakeDriver
from support.greedy import Tokens, greedy
from support.host_device import host_devices
from support.token_tape import Tape
from transformers import AutoModelForCausalLM

from compute.assembly import assemble
from compute.beside.follower import Launched
from compute.cache_folder import Quantization
from compute.offloaded import Offloaded
from compute.recording import Recording
from compute.settings import Settings
from protocol.errors import ModelError

TOP_K, NUM_KEYS = 4, 192


@contextmanager
def offloaded_to(
    store: Path, driver: FakeDriver, tape: Tape | None = None, **named: object
) -> Iterator[Offloaded]:
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
        with Offloaded(parts, opened.pop_all(), 30.0) as offloaded:
            yield offloaded


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
    with offloaded_to(store_none, driver, **named) as offloaded:
        assert greedy(offloaded.model) == stock_tokens
        report = offloaded.report()
    assert report["stage"] == 2 and report["arrangement"] == "pinned"
    check_counters(report, slots, lookahead)
    assert not driver.locked, "something stayed page-locked"


@pytest.mark.parametrize(("slots", "policy", "predictor", "lookahead"), SETTINGS)
def test_stage_3_gives_the_tokens_of_a_static_cache_out_of_recordings(
    store_none: Path, static_tokens: Tokens, slots: int, policy: str, predictor: str, lookahead: int
) -> None:
    driver, tape = FakeDriver(rate=20e9), Tape()
    named = {"slots": slots, "policy": policy, "predictor": predictor, "lookahead": lookahead, "stage": 3}
    with offloaded_to(store_none, driver, tape, **named) as offloaded:
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
    assert figures["hits"] > 0 and figures["experts_landed"] > 0
    assert (figures["evictions"] > 0) == (slots < NUM_KEYS)
    assert (figures["prefetch_used"] > 0) == (lookahead > 0)


def test_whoever_watches_sees_every_layer_step_and_the_tokens_stay(
    store_none: Path, static_tokens: Tokens
) -> None:
    tape, seen = Tape(), []
    with offloaded_to(store_none, FakeDriver(rate=20e9), tape, stage=3) as offloaded:
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
    with offloaded_to(store_none, driver, **{"stage": 3, **named}) as offloaded:
        assert greedy(offloaded.model) == stock_tokens
        assert offloaded.report()["stage"] == 1
        (notice,) = (notice for notice in offloaded.notices if "--stage 3" in notice)
    assert "stage 1 runs instead" in notice and reason in notice
    assert not driver.locked


def test_a_device_that_does_not_read_host_memory_in_place_is_a_reason(store_none: Path) -> None:
    with offloaded_to(store_none, FakeDriver(reads_in_place=False), stage=2) as offloaded:
        assert "does not read page-locked memory" in "".join(offloaded.notices)
        assert offloaded.report()["stage"] == 1


def test_a_router_that_names_no_expert_is_an_error(store_none: Path) -> None:
    with offloaded_to(store_none, FakeDriver(rate=20e9), stage=2) as offloaded:
        module = offloaded.moe_layers[3].experts
        hidden, weights = torch.zeros(1, 192, dtype=torch.bfloat16), torch.ones(1, TOP_K)
        offloaded.stage.begin_pass(1, False)
        with torch.no_grad(), pytest.raises(ModelError, match="chose expert 32 of a layer with 32"):
            module(hidden, torch.tensor([[0, 32, 1, 2]]), weights)


def test_a_device_that_stands_still_is_an_error_that_names_the_setting(store_none: Path) -> None:
    with offloaded_to(store_none, FakeDriver(rate=20e9), stage=2) as offloaded:
        beside = offloaded.stage.beside
        assert beside is not None
        beside._follower._timeout_s = 0.05
        beside.begin_pass(1000 * 6, 1, False)
        beside._follower.launched(Launched(0, 1000 * 6, 1, TOP_K))
        with pytest.raises(RuntimeError, match=r"has not run a layer-step within 0.05 s .*--timeout"):
            beside.catch_up()
        beside._follower._queue.clear()


def test_a_killed_loader_is_not_missed(store_none: Path, stock_tokens: Tokens) -> None:
    with offloaded_to(store_none, FakeDriver(rate=20e9), stage=2) as offloaded:
        client = offloaded.stage._transport._client  # type: ignore[attr-defined]
        os.kill(client.loader_pid, signal.SIGKILL)
        assert greedy(offloaded.model) == stock_tokens
        assert client.num_restarts == 0
