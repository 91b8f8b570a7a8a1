"""pinned and staged with everything real but the device: loader, arena, model, chunk queue, thread.

The device is a fake whose memory is the CPU's. Tokens are those of stock transformers.
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
from transformers import AutoModelForCausalLM

from compute.assembly import assemble
from compute.cache_folder import Quantization
from compute.devices import Devices
from compute.offloaded import Offloaded
from compute.recording import Recording
from compute.settings import Settings
from compute.transports import page_lock
from protocol.errors import MemoryBudgetError
from protocol.timeline import Timeline

TOP_K, NUM_KEYS = 4, 192


@contextmanager
def offloaded_to(
    store: Path,
    driver: FakeDriver,
    *,
    arrangement: str = "auto",
    slots: int | None = 48,
    vram: int | None = None,
    ram: int | None = None,
    lookahead: int = 1,
    timeline: Timeline | None = None,
) -> Iterator[Offloaded]:
    settings = Settings(
        quantization=Quantization(),
        ram=ram,
        slots=slots,
        vram=vram,
        arrangement=arrangement,
        link=None,
        policy="lru",
        predictor="gate" if lookahead else "none",
        lookahead=lookahead,
        dtype="auto",
        device="auto",
        threads=1,
        connect=None,
    )
    devices = Devices(has_cuda=lambda: True, open=lambda: driver)
    with ExitStack() as opened:
        parts = assemble(str(store), settings, 30.0, Recording(timeline, None), opened, devices)
        with Offloaded(parts, opened.pop_all(), 30.0) as offloaded:
            yield offloaded


@pytest.fixture(scope="module")
def stock_tokens(shipped_model: Path) -> Tokens:
    torch.set_num_threads(1)
    return greedy(AutoModelForCausalLM.from_pretrained(shipped_model, experts_implementation="grouped_mm"))


def expert_bytes(store: Path, count: int) -> int:
    from protocol.manifest import Manifest

    return count * Manifest.read(store).layout.stride


@pytest.mark.parametrize(("slots", "lookahead"), [(TOP_K, 0), (48, 2), (NUM_KEYS, 1)])
def test_pinned_gives_stock_tokens_without_asking_the_loader(
    store_none: Path, stock_tokens: Tokens, slots: int, lookahead: int
) -> None:
    driver = FakeDriver(rate=20e9)
    with offloaded_to(store_none, driver, slots=slots, lookahead=lookahead) as offloaded:
        assert greedy(offloaded.model) == stock_tokens
        report = offloaded.report()
    assert (report["arrangement"], report["slots"], report["frames"]) == ("pinned", slots, NUM_KEYS)
    assert "all 192 experts" in str(report["arrangement_reason"])
    assert report["bytes_read"] == expert_bytes(store_none, NUM_KEYS), "the loader read more than the fill"
    assert report["bytes_transferred"] >= expert_bytes(store_none, 1)  # type: ignore[operator]
    assert driver.num_unlocked_sources == 0 and not driver.locked, "something stayed page-locked"


@pytest.mark.parametrize("slots", [TOP_K, 48])
def test_staged_gives_stock_tokens_from_fewer_frames_than_experts(
    store_none: Path, stock_tokens: Tokens, slots: int
) -> None:
    driver = FakeDriver(rate=20e9)
    ram = expert_bytes(store_none, 24)
    with offloaded_to(store_none, driver, slots=slots, ram=ram, lookahead=1) as offloaded:
        assert greedy(offloaded.model) == stock_tokens
        report = offloaded.report()
        assert offloaded.stage._transport.stats()["torn_frames"] == 0, "a lease went back before the copy"
    assert (report["arrangement"], report["frames"]) == ("staged", 24)
    assert not driver.locked


def test_pinned_decodes_on_when_its_loader_is_killed(store_none: Path, stock_tokens: Tokens) -> None:
    with offloaded_to(store_none, FakeDriver(rate=20e9)) as offloaded:
        client = offloaded.stage._transport._client  # type: ignore[attr-defined]
        os.kill(client.loader_pid, signal.SIGKILL)
        assert greedy(offloaded.model) == stock_tokens
        assert client.num_restarts == 0, "somebody asked for the loader"


def test_a_refused_registration_falls_to_staged_and_says_so(
    store_none: Path, stock_tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of the frames can be locked: they are copied from where they lie, the others by the ring."""
    monkeypatch.setattr(page_lock, "LEAST_BYTES", 1)
    driver = FakeDriver(rate=20e9, most_locked=expert_bytes(store_none, 50) + 2 * 4 * 2**20)
    with offloaded_to(store_none, driver, lookahead=1) as offloaded:
        assert greedy(offloaded.model) == stock_tokens
        report = offloaded.report()
        link = offloaded.stage._transport._link  # type: ignore[attr-defined]
        assert 0 < link.num_by_ring < driver.num_copies
        (notice,) = (notice for notice in offloaded.notices if "page-locked" in notice)
    assert "the fake driver page-locks no more" in notice and "staged instead of pinned" in notice
    assert report["arrangement"] == "staged" and report["arrangement_reason"] == notice
    assert not driver.locked


def test_slots_that_the_device_does_not_hold_are_refused_with_the_number_that_fits(store_none: Path) -> None:
    free = expert_bytes(store_none, 20)
    with (
        pytest.raises(MemoryBudgetError, match="pass --slots 19 or fewer"),
        offloaded_to(store_none, FakeDriver(memory=(free, free)), slots=30),
    ):
        pass


def test_device_memory_that_is_gone_when_it_is_taken_is_an_error_with_the_number_that_fits(
    store_none: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*shape: int, **_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("not enough")

    free = expert_bytes(store_none, 20)
    driver = FakeDriver(memory=(free, free))
    with monkeypatch.context() as patch, pytest.raises(MemoryBudgetError, match="17 slots would fit"):
        patch.setattr("compute.transports.cuda.torch.empty", refuse)
        from compute.transports.cuda import open_pool

        open_pool(driver, 60, 3, expert_bytes(store_none, 1))


def test_vram_says_how_many_slots_there_are(store_none: Path) -> None:
    vram = expert_bytes(store_none, 40)
    with offloaded_to(store_none, FakeDriver(), slots=None, vram=vram) as offloaded:
        assert offloaded.report()["slots"] == 37


def test_arrows_lead_from_the_fetch_over_the_link_to_the_slot(store_none: Path) -> None:
    timeline = Timeline("compute")
    with offloaded_to(store_none, FakeDriver(rate=20e9), slots=TOP_K, timeline=timeline) as offloaded:
        greedy(offloaded.model)
    events = timeline._events()
    started, passed, ended = ({e["id"] for e in events if e["ph"] == phase} for phase in "stf")
    assert ended and ended <= passed <= started
