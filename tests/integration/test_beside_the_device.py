"""Stages 2 and 3 with everything real but the device: loader, arena, model, policy, link; stock's tokens.

The device's kernels run at once on the CPU (`support.host_device`), a graph is a tape of operators:
what is tested is what the host does beside them. A device that runs behind, and every order of
events, is tests/compute/test_following.py's.
"""

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
from compute.cache_folder import Quantization
from compute.offloaded import Offloaded
from compute.recording import Recording
from compute.settings import Settings

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
