"""What a plan says of a model, compared with that model when it really runs."""

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from support.tiny_models import make_checkpoint

from compute.cache_folder import Quantization
from launch.planning.subject import kv_cache_bytes, subject_of
from loader.anatomy import study
from protocol.errors import ModelError
from protocol.manifest import Manifest


def held_bytes(cache: transformers.Cache) -> int:
    values = [value for layer in cache.layers for value in vars(layer).values()]
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("arch", ["qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_the_kv_cache_is_what_the_real_model_keeps(arch: str, tmp_path: Path) -> None:
    folder = make_checkpoint(arch, tmp_path / arch)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.ones(1, 50, dtype=torch.long)
    with torch.no_grad():
        cache = model(input_ids=tokens, use_cache=True).past_key_values
    assert kv_cache_bytes(study(folder), 50) == held_bytes(cache)


@pytest.mark.parametrize("arch", ["qwen3_moe", "gpt_oss"])
def test_dense_weights_are_all_that_is_no_expert(arch: str, tmp_path: Path) -> None:
    folder = make_checkpoint(arch, tmp_path / arch)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    all_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    expert_bytes = sum(
        p.numel() * p.element_size() for name, p in model.named_parameters() if ".experts." in name
    )
    subject = subject_of(str(folder), Quantization("none"), 64)
    assert subject.dense_bytes == all_bytes - expert_bytes
    assert subject.worked_bytes == subject.dense_bytes - 256 * 128 * 4


def test_a_store_needs_no_conversion_to_be_planned(store_4bit: Path, shipped_model: Path) -> None:
    of_store = subject_of(str(store_4bit), Quantization(), None)
    of_checkpoint = subject_of(str(shipped_model), Quantization("4"), None)
    assert of_store.manifest == Manifest.read(store_4bit)
    assert of_store.manifest.layout == of_checkpoint.manifest.layout
    assert of_store.manifest.layers == of_checkpoint.manifest.layers
    assert of_store.dense_bytes == of_checkpoint.dense_bytes == 2047872


def test_a_config_alone_is_enough(shipped_model: Path, tmp_path: Path) -> None:
    shutil.copy(shipped_model / "config.json", tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"metadata": {"total_size": 12345}}')
    subject = subject_of(str(tmp_path), Quantization(), 100)
    assert (subject.download_bytes, subject.context, subject.longest_context) == (12345, 100, 512)
    assert subject.manifest.num_keys == 192


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no config.json"),
        ({"config.json": "{"}, "damaged"),
        ({"config.json": '{"model_type": "llama"}'}, "no experts"),
        ({"config.json": '{"model_type": "no-such-type"}'}, "cannot build the model"),
    ],
)
def test_what_cannot_be_planned_is_refused(files: dict[str, str], words: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=words):
        subject_of(str(tmp_path), Quantization(), None)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("./nowhere", "no folder"),
        (__file__, "is a file"),
        ("no-such/model", "within reach"),
        ("a b", "no model"),
    ],
)
def test_a_model_that_is_nowhere_is_refused(model: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        subject_of(model, Quantization(), None)
