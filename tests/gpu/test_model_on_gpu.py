"""The shipped model on a CUDA device: the same logits for every slot count, the CPU's tokens, and faults."""

import os
import signal
from pathlib import Path

import pytest
import torch
from support.on_gpu import NUM_KEYS, PROMPT, SLOTS, TOP_K, greedy, on_gpu
from transformers import AutoModelForCausalLM

from compute import offload
from compute.transports import page_lock
from compute.transports.cuda_driver import CudaDriver
from compute.transports.driver import DriverError
from protocol.errors import MemoryBudgetError
from protocol.manifest import Manifest

pytestmark = pytest.mark.gpu


def logits_of(model: torch.nn.Module, num_steps: int = 8) -> torch.Tensor:
    """Of a prompt and of greedy steps after it: [1, n + num_steps, vocabulary]."""
    ids = PROMPT.to(model.device)
    found = []
    with torch.no_grad():
        out = model(input_ids=ids, use_cache=True)
        for _ in range(num_steps):
            found.append(out.logits)
            ids = out.logits[:, -1:].argmax(-1)
            out = model(input_ids=ids, past_key_values=out.past_key_values, use_cache=True)
    return torch.cat([*found, out.logits], dim=1).cpu()


def ram_for(store: Path, num_frames: int) -> int:
    return num_frames * Manifest.read(store).layout.stride


@pytest.mark.parametrize("bits", ["4", "none"])
def test_logits_are_equal_for_every_slot_count_arrangement_and_lookahead(
    bits: str, store_4bit: Path, store_none: Path
) -> None:
    store = store_4bit if bits == "4" else store_none
    with on_gpu(store, slots=NUM_KEYS, lookahead=0, predictor="none") as offloaded:
        resident = logits_of(offloaded.model)
        assert offloaded.report()["arrangement"] == "pinned"
    for slots in SLOTS:
        for settings in ({}, {"lookahead": 2}, {"arrangement": "staged", "ram": ram_for(store, 24)}):
            with on_gpu(store, slots=slots, **settings) as offloaded:
                assert torch.equal(logits_of(offloaded.model), resident), f"{slots} slots, {settings}"


def test_float32_tokens_are_those_of_stock_transformers_on_the_cpu(
    store_none: Path, shipped_model: Path, exact_products: None
) -> None:
    stock = AutoModelForCausalLM.from_pretrained(shipped_model, dtype=torch.float32)
    with on_gpu(store_none, slots=48, dtype="float32") as offloaded:
        assert greedy(offloaded.model) == greedy(stock)


def test_logits_are_equal_on_a_stream_of_the_callers(store_4bit: Path) -> None:
    with on_gpu(store_4bit, slots=TOP_K + 1) as offloaded:
        expected = logits_of(offloaded.model)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            assert torch.equal(logits_of(offloaded.model), expected)
        assert torch.equal(logits_of(offloaded.model), expected)


@pytest.mark.parametrize("arrangement", ["pinned", "staged"])
def test_a_killed_loader_changes_no_token(store_4bit: Path, arrangement: str) -> None:
    with on_gpu(
        store_4bit, slots=12, arrangement=arrangement, ram=ram_for(store_4bit, NUM_KEYS)
    ) as offloaded:
        before = greedy(offloaded.model)
        client = offloaded.stage._transport._client  # type: ignore[attr-defined]
        os.kill(client.loader_pid, signal.SIGKILL)
        assert greedy(offloaded.model) == before
        assert (client.num_restarts > 0) == (arrangement == "staged")


def test_a_refused_registration_falls_to_staged_and_says_so(
    store_4bit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with on_gpu(store_4bit, slots=12) as offloaded:
        expected = logits_of(offloaded.model)
    page_locks = CudaDriver.page_lock
    monkeypatch.setattr(page_lock, "LEAST_BYTES", 1)

    def refuse(driver: CudaDriver, address: int, num_bytes: int) -> None:
        if num_bytes > ram_for(store_4bit, 60) and num_bytes != 8 * 2**20:
            raise DriverError("no more for this test")
        page_locks(driver, address, num_bytes)

    monkeypatch.setattr(CudaDriver, "page_lock", refuse)
    with on_gpu(store_4bit, slots=12) as offloaded:
        assert torch.equal(logits_of(offloaded.model), expected)
        assert offloaded.report()["arrangement"] == "staged"
        assert any("no more for this test" in notice for notice in offloaded.notices)
        assert offloaded.stage._transport._link.num_by_ring > 0  # type: ignore[attr-defined]


def test_device_memory_that_does_not_suffice_is_a_sentence(store_4bit: Path) -> None:
    with pytest.raises(MemoryBudgetError, match=r"are free on the device, enough for \d+ slots"):
        offload(store_4bit, device="cuda", vram="10TB")


def test_the_model_and_its_slots_are_on_the_device(store_4bit: Path) -> None:
    with on_gpu(store_4bit, slots=12) as offloaded:
        assert {parameter.device.type for parameter in offloaded.model.parameters()} == {"cuda"}
        assert offloaded.stage._transport.blob(0).device.type == "cuda"


def test_closing_gives_the_device_its_memory_back(store_4bit: Path) -> None:
    torch.cuda.empty_cache()
    with on_gpu(store_4bit, slots=NUM_KEYS) as offloaded:
        greedy(offloaded.model)
        del offloaded
    taken = [torch.cuda.memory_allocated()]
    for _ in range(2):
        with on_gpu(store_4bit, slots=NUM_KEYS) as offloaded:
            greedy(offloaded.model)
        del offloaded
        taken.append(torch.cuda.memory_allocated())
    assert taken[-1] <= taken[0] + 2**20
