"""An offloaded model computes what stock transformers computes, over architectures and settings."""

from pathlib import Path

import pytest
import torch
from support.tiny_models import ARCHITECTURES
from support.tiny_stores import make_tiny_store, prompt, stock_logits

from compute import offload

MIN_SLOTS = 3  # the largest top-k among the tiny models


def offloaded_logits(store: Path, input_ids: torch.Tensor, **settings: object) -> torch.Tensor:
    with offload(store, **settings) as offloaded:  # type: ignore[arg-type]
        logits: torch.Tensor = offloaded.model(input_ids=input_ids).logits
        return logits


@pytest.mark.parametrize("fused", [False, True], ids=["per-expert", "fused"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_logits_equal_grouped_mm_bit_for_bit_and_eager_within_rounding(
    arch: str, fused: bool, tmp_path: Path
) -> None:
    checkpoint, store = make_tiny_store(arch, tmp_path, fused=fused)
    logits = offloaded_logits(store, prompt(), slots=MIN_SLOTS)
    assert torch.equal(logits, stock_logits(checkpoint, "grouped_mm", prompt()))
    assert torch.allclose(logits, stock_logits(checkpoint, "eager", prompt()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_single_token_equals_grouped_mm_bit_for_bit(arch: str, tmp_path: Path) -> None:
    checkpoint, store = make_tiny_store(arch, tmp_path)
    token = prompt(batch=1, length=1)
    assert torch.equal(offloaded_logits(store, token), stock_logits(checkpoint, "grouped_mm", token))


@pytest.mark.parametrize("arch", ["olmoe", "gpt_oss"])
def test_bfloat16_equals_grouped_mm_bit_for_bit(arch: str, tmp_path: Path) -> None:
    checkpoint, store = make_tiny_store(arch, tmp_path, dtype="bfloat16")
    logits = offloaded_logits(store, prompt())
    assert logits.dtype == torch.bfloat16
    assert torch.equal(logits, stock_logits(checkpoint, "grouped_mm", prompt()))


@pytest.mark.parametrize(
    "settings",
    [
        {"slots": 3, "lookahead": 0},
        {"slots": 5, "lookahead": 2, "policy": "lfu-aged"},
        {"slots": 5, "lookahead": 1, "arrangement": "emulated"},
        {"slots": 16, "lookahead": 1, "arrangement": "emulated", "link": "50MB/s", "policy": "least-stale"},
        {"predictor": "none"},
    ],
    ids=["top-k", "few", "emulated", "slow link", "all"],
)
def test_settings_never_move_a_logit(settings: dict[str, object], tmp_path: Path) -> None:
    checkpoint, store = make_tiny_store("olmoe", tmp_path)
    logits = offloaded_logits(store, prompt(), **settings)
    assert torch.equal(logits, stock_logits(checkpoint, "grouped_mm", prompt()))


@pytest.mark.parametrize("bits", ["8", "4", "3", "2"])
def test_quantized_logits_do_not_depend_on_slots_or_arrangement(bits: str, tmp_path: Path) -> None:
    _, store = make_tiny_store("olmoe", tmp_path, bits=bits)
    reference = offloaded_logits(store, prompt(), lookahead=0)
    assert torch.equal(offloaded_logits(store, prompt(), slots=4), reference)
    assert torch.equal(offloaded_logits(store, prompt(), slots=4, arrangement="emulated"), reference)
