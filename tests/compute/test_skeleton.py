"""The skeleton: a stock model whose experts never exist."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.tiny_models import ARCHITECTURES, make_checkpoint
from support.tiny_stores import make_tiny_store

from compute import experts, skeleton
from compute.discovery import discover
from protocol.errors import MemoryBudgetError, ModelError, StoreError
from protocol.manifest import Manifest


def dense_bytes(checkpoint: Path) -> int:
    """Parameter bytes of the whole model, less those of its experts."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
    expert_bytes = sum(
        skeleton.parameter_bytes(module) for module in model.modules() if experts.is_experts_module(module)
    )
    assert expert_bytes > 0
    return skeleton.parameter_bytes(model) - expert_bytes


@pytest.mark.parametrize("fused", [False, True], ids=["per-expert", "fused"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_expert_parameter_exists_and_no_dense_one_is_missing(
    arch: str, fused: bool, tmp_path: Path
) -> None:
    checkpoint, store = make_tiny_store(arch, tmp_path, fused=fused)
    model, _ = skeleton.build(store, Manifest.read(store), "auto", "cpu")
    assert skeleton.parameter_bytes(model) == dense_bytes(checkpoint)
    for layer in discover(model):
        assert list(layer.experts.parameters(recurse=False)) == []


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_store_holds_exactly_the_keys_of_its_skeleton(arch: str, tmp_path: Path) -> None:
    _, store = make_tiny_store(arch, tmp_path)
    skeleton.build(store, Manifest.read(store), "auto", "cpu")
    _, info = transformers.AutoModelForCausalLM.from_pretrained(
        store, quantization_config=skeleton.ExpertlessConfig(), output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]


def test_the_model_is_a_stock_one_that_keeps_no_trace_of_the_loading(tmp_path: Path) -> None:
    _, store = make_tiny_store("olmoe", tmp_path)
    model, tokenizer = skeleton.build(store, Manifest.read(store), "auto", "cpu")
    assert type(model) is transformers.OlmoeForCausalLM
    assert not hasattr(model, "hf_quantizer") and not getattr(model, "is_quantized", False)
    assert "quantization_config" not in model.config.to_dict()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert tokenizer is None


@torch.no_grad()
def test_the_head_gets_the_last_rows_of_a_prompt_as_a_matrix_of_their_own(tmp_path: Path) -> None:
    _, store = make_tiny_store("olmoe", tmp_path)
    model, _ = skeleton.build(store, Manifest.read(store), "auto", "cpu")
    seen: list[torch.Tensor] = []
    model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    sequence = torch.randn(2, 9, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    straight = model.lm_head(sequence[:, -1:].contiguous())
    assert torch.equal(model.lm_head(sequence[:, -1:]), straight)
    model.lm_head(sequence[:1, -1:])
    assert [rows.stride()[0] for rows in seen] == [rows.shape[1] * rows.shape[2] for rows in seen]


def test_the_tokenizer_comes_with_a_store_that_has_one(store_none: Path) -> None:
    _, tokenizer = skeleton.build(store_none, Manifest.read(store_none), "auto", "cpu")
    assert tokenizer is not None
    assert tokenizer.decode(tokenizer("a king")["input_ids"], skip_special_tokens=True) == "a king"


def test_auto_is_the_checkpoints_own_dtype(tmp_path: Path) -> None:
    checkpoint = make_checkpoint("olmoe", tmp_path / "checkpoint", dtype="bfloat16")
    from loader.convert import convert

    convert(str(checkpoint), tmp_path / "store", bits="none", group=64)
    manifest = Manifest.read(tmp_path / "store")
    own, _ = skeleton.build(tmp_path / "store", manifest, "auto", "cpu")
    other, _ = skeleton.build(tmp_path / "store", manifest, "float32", "cpu")
    assert own.dtype == torch.bfloat16
    assert other.dtype == torch.float32


def test_an_unknown_dtype_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    _, store = make_tiny_store("olmoe", tmp_path)
    with pytest.raises(ValueError, match="dtype 'int3' is not known: use auto, bfloat16, float16, float32"):
        skeleton.build(store, Manifest.read(store), "int3", "cpu")


def test_a_missing_dense_weight_is_an_error_and_not_noise(tmp_path: Path) -> None:
    _, store = make_tiny_store("olmoe", tmp_path)
    for file in store.glob("model*.safetensors"):
        weights = load_file(file)
        weights.pop("model.norm.weight", None)
        save_file(weights, file, metadata={"format": "pt"})
    index = store / "model.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text())
        content["weight_map"].pop("model.norm.weight")
        index.write_text(json.dumps(content))
    with pytest.raises(StoreError, match=r"1 missing keys, the first is model\.norm\.weight"):
        skeleton.build(store, Manifest.read(store), "auto", "cpu")


def test_an_architecture_that_transformers_does_not_have_is_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    _, store = make_tiny_store("olmoe", tmp_path)
    manifest = replace(Manifest.read(store), architecture="FutureMoeForCausalLM")
    with pytest.raises(ModelError, match="'FutureMoeForCausalLM' is not in transformers"):
        skeleton.build(store, manifest, "auto", "cpu")


@pytest.mark.parametrize("version", ["4.57.1", "5.16.0", "6.0.0"])
def test_other_versions_of_transformers_are_refused(version: str) -> None:
    with pytest.raises(ModelError, match=f"transformers {version} is installed, sidestage works with 5.17"):
        skeleton.check_transformers_version(version)


@pytest.mark.parametrize("version", ["5.17.0", "5.23.0", "5.30.0.dev0"])
def test_versions_in_the_range_are_taken(version: str) -> None:
    skeleton.check_transformers_version(version)


def test_dense_weights_that_the_device_does_not_hold_are_a_sentence(
    store_none: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("not enough")

    monkeypatch.setattr("transformers.PreTrainedModel.to", refuse)
    with pytest.raises(MemoryBudgetError, match=r"takes .* MiB, and cuda:0 has less .* pass --device cpu"):
        skeleton.build(store_none, Manifest.read(store_none), "auto", "cuda:0")
