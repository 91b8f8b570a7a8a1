"""Whatever cannot be converted is refused with a sentence that says what to do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.tiny_models import make_checkpoint

from loader.checkpoint import Checkpoint
from protocol.errors import ModelError


def refusal(model: str | Path) -> str:
    with pytest.raises(ModelError) as caught:
        Checkpoint.open(model)
    return str(caught.value)


def change_config(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_missing_folder_is_named() -> None:
    assert "there is no folder /no/such/model" in refusal("/no/such/model")


def test_hub_id_that_is_not_in_the_cache_is_refused_offline() -> None:
    sentence = refusal("sidestage-tests/no-such-model")
    assert "no folder 'sidestage-tests/no-such-model'" in sentence and "hub" in sentence


def test_name_that_is_neither_folder_nor_hub_id_is_refused() -> None:
    assert "give a checkpoint's or a store's folder, or a hub id" in refusal("no model: this")


def test_file_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    assert "is a file, not a model" in refusal(file)


def test_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    assert "it has no config.json" in refusal(tmp_path)


def test_damaged_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    assert "config.json is damaged" in refusal(tmp_path)


def test_checkpoint_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "only safetensors is read" in refusal(tmp_path)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    folder = make_checkpoint("mixtral", tmp_path, max_shard_size="300KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    assert f"{shard.name} is missing" in refusal(folder)


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    folder = make_checkpoint("olmoe", tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "not a whole safetensors file" in refusal(folder)


def test_index_that_points_outside_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint("olmoe", tmp_path)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.embed_tokens.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "must name files beside it" in refusal(folder)


def test_model_without_experts_is_refused(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    assert "'llama' has no experts" in refusal(tmp_path)


def test_architecture_off_the_interface_is_refused(tmp_path: Path) -> None:
    config = transformers.JetMoeConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_key_value_heads=1,
        kv_channels=16,
    )
    transformers.JetMoeForCausalLM(config).save_pretrained(tmp_path)
    assert "off transformers' experts interface" in refusal(tmp_path)


def test_unknown_architecture_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint("olmoe", tmp_path)
    change_config(folder, model_type="a_model_of_tomorrow", architectures=["TomorrowForCausalLM"])
    assert "transformers cannot build the model" in refusal(folder)


@pytest.mark.parametrize("method", ["mxfp4", "fp8", "gptq"])
def test_quantized_checkpoint_is_refused(method: str, tmp_path: Path) -> None:
    folder = make_checkpoint("gpt_oss", tmp_path)
    change_config(folder, quantization_config={"quant_method": method})
    sentence = refusal(folder)
    assert f"quantized already ({method})" in sentence and "refused here and supported later" in sentence


def test_missing_expert_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint("olmoe", tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.experts.5.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "has 8 experts in the model, but the checkpoint holds 7 tensors" in refusal(folder)


def test_missing_layer_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint("olmoe", tmp_path)
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layers.1.mlp.experts" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    assert "holds nothing for model.layers.1.mlp.experts.gate_up_proj" in refusal(folder)


def test_experts_of_an_unknown_dtype_are_refused(tmp_path: Path) -> None:
    folder = make_checkpoint("olmoe", tmp_path)
    weights = load_file(folder / "model.safetensors")
    odd = {n: t.to(torch.float8_e4m3fn) if ".experts." in n else t for n, t in weights.items()}
    save_file(odd, folder / "model.safetensors", {"format": "pt"})
    assert "stored as F8_E4M3" in refusal(folder)


def test_experts_of_another_size_than_the_config_says_are_refused(tmp_path: Path) -> None:
    folder = make_checkpoint("olmoe", tmp_path)
    change_config(folder, intermediate_size=128)
    with (
        Checkpoint.open(folder) as checkpoint,
        pytest.raises(ModelError, match=r"weights and config\.json differ"),
    ):
        checkpoint.expert(0)
