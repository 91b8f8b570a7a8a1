"""Stages 1, 2 and 3 on a CUDA device: the same logits and tokens, whoever takes part in a layer."""

import os
import signal
from pathlib import Path

import pytest
import torch
from support.on_gpu import NUM_KEYS, PROMPT, SLOTS, TOP_K, greedy, on_gpu
from transformers import DynamicCache, StaticCache

pytestmark = pytest.mark.gpu

BATCH = torch.tensor([[5, 17, 99, 3], [8, 1, 60, 12], [90, 41, 2, 33]])


@torch.no_grad()
def logits_of(model: torch.nn.Module, *, is_static: bool, prompt: torch.Tensor = PROMPT) -> torch.Tensor:
    """Of greedy steps behind a prompt: [B, 12, vocabulary], over a cache of the said kind."""
    ids = prompt.to(model.device)
    cache = (
        StaticCache(config=model.config, max_cache_len=64) if is_static else DynamicCache(config=model.config)
    )
    found = []
    for _ in range(12):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        found.append(out.logits[:, -1])
        ids = out.logits[:, -1:].argmax(-1)
    return torch.stack(found, dim=1).cpu()


@pytest.mark.parametrize("bits", ["4", "none"])
def test_stage_2_gives_the_logits_of_stage_1(bits: str, store_4bit: Path, store_none: Path) -> None:
    store = store_4bit if bits == "4" else store_none
    with on_gpu(store, slots=NUM_KEYS) as offloaded:
        expected = [logits_of(offloaded.model, is_static=False, prompt=p) for p in (PROMPT, BATCH)]
    for slots in SLOTS:
        for settings in ({"lookahead": 0, "predictor": "none"}, {"lookahead": 2}, {"policy": "lru"}):
            with on_gpu(store, slots=slots, stage=2, **settings) as offloaded:
                assert offloaded.report()["stage"] == 2
                for prompt, wanted in zip((PROMPT, BATCH), expected, strict=True):
                    found = logits_of(offloaded.model, is_static=False, prompt=prompt)
                    assert torch.equal(found, wanted), f"{slots} slots, {settings}"


@pytest.mark.parametrize("bits", ["4", "none"])
def test_stage_3_gives_the_logits_of_stage_1_over_the_same_cache(
    bits: str, store_4bit: Path, store_none: Path
) -> None:
    store = store_4bit if bits == "4" else store_none
    with on_gpu(store, slots=NUM_KEYS) as offloaded:
        expected = logits_of(offloaded.model, is_static=True)
    for slots in SLOTS:
        with on_gpu(store, slots=slots, stage=3, lookahead=2) as offloaded:
            for _ in range(2):
                assert torch.equal(logits_of(offloaded.model, is_static=True), expected), f"{slots} slots"
            report = offloaded.report()
            assert offloaded.notices == () or slots == TOP_K, offloaded.notices
            assert report["stage"] == 3 and int(report["graph_replays"] or 0) > 10


def test_generate_gives_the_same_tokens_in_all_stages(store_4bit: Path) -> None:
    found = []
    for stage in (1, 2, 3):
        with on_gpu(store_4bit, slots=24, stage=stage) as offloaded:
            found.append(greedy(offloaded.model, 24, cache_implementation="static", disable_compile=True))
            found.append(greedy(offloaded.model, 24, cache_implementation="static", disable_compile=True))
    assert all(tokens == found[0] for tokens in found)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_killed_loader_is_not_missed(store_4bit: Path, stage: int) -> None:
    with on_gpu(store_4bit, slots=12, stage=stage) as offloaded:
        before = greedy(offloaded.model, 24)
        client = offloaded.stage._transport._client  # type: ignore[attr-defined]
        os.kill(client.loader_pid, signal.SIGKILL)
        assert greedy(offloaded.model, 24) == before
        assert client.num_restarts == 0


def test_the_device_brings_what_it_misses_and_the_policy_keeps_up(store_4bit: Path) -> None:
    with on_gpu(store_4bit, slots=48, stage=3, lookahead=1) as offloaded:
        for _ in range(3):
            greedy(offloaded.model, 24)
        report = {name: value for name, value in offloaded.report().items() if isinstance(value, int | float)}
    assert report["lookups"] == report["hits"] + report["late"] + report["misses"]
    assert report["hits"] > report["misses"] and report["experts_landed"] > 0 and report["evictions"] > 0
    assert report["experts_landed"] > report["experts_in_place"]


def test_a_stream_of_the_callers_changes_nothing(store_4bit: Path) -> None:
    with on_gpu(store_4bit, slots=24, stage=3) as offloaded:
        expected = logits_of(offloaded.model, is_static=True)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            assert torch.equal(logits_of(offloaded.model, is_static=True), expected)
        assert torch.equal(logits_of(offloaded.model, is_static=True), expected)
