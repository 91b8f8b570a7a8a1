"""Stage 2 with everything real but the device: loader, arena, model, policy and link; stock's tokens.

The device's two kernels run at once on the CPU (`HostResolver`): what is tested is what the host does
beside them. Its running behind, and every order of events, is tests/compute/test_following.py's.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from support.fake_driver import FakeDriver
from support.greedy import Tokens, greedy
from support.host_device import host_devices
from transformers import AutoModelForCausalLM

from compute.assembly import assemble
from compute.cache_folder import Quantization
from compute.offloaded import Offloaded
from compute.recording import Recording
from compute.settings import Settings

TOP_K, NUM_KEYS = 4, 192


@contextmanager
def offloaded_to(store: Path, driver: FakeDriver, **named: object) -> Iterator[Offloaded]:
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
        parts = assemble(str(store), settings, 30.0, Recording(None, None), opened, host_devices(driver))
        with Offloaded(parts, opened.pop_all(), 30.0) as offloaded:
            yield offloaded


@pytest.fixture(scope="module")
def stock_tokens(shipped_model: Path) -> Tokens:
    torch.set_num_threads(1)
    return greedy(AutoModelForCausalLM.from_pretrained(shipped_model, experts_implementation="grouped_mm"))


@pytest.mark.parametrize(
    ("slots", "policy", "predictor", "lookahead"),
    [
        (TOP_K, "lru", "none", 0),
        (24, "reuse-distance", "gate", 2),
        (48, "lfu-aged", "gate+st-moe", 1),
        (NUM_KEYS, "lru", "gate", 1),
    ],
)
def test_stage_2_gives_stock_tokens_and_the_device_brings_its_experts_itself(
    store_none: Path, stock_tokens: Tokens, slots: int, policy: str, predictor: str, lookahead: int
) -> None:
    driver = FakeDriver(rate=20e9)
    named = {"slots": slots, "policy": policy, "predictor": predictor, "lookahead": lookahead}
    with offloaded_to(store_none, driver, **named) as offloaded:
        assert greedy(offloaded.model) == stock_tokens
        report = offloaded.report()
    print(report)
    assert report["stage"] == 2 and report["arrangement"] == "pinned"
    assert report["stall_s"] == 0 or slots < NUM_KEYS
    assert not driver.locked, "something stayed page-locked"
