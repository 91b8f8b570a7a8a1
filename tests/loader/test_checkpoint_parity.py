"""Experts read one at a time are bit-equal to what transformers itself loads."""

from pathlib import Path

import pytest
import torch
import transformers
from support.tiny_models import ARCHITECTURES, make_checkpoint, tiny_config

from loader.checkpoint import Checkpoint


def assert_equal_to_stock(folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    with Checkpoint.open(folder) as checkpoint:
        for key in range(checkpoint.num_keys):
            layer, expert = divmod(key, checkpoint.anatomy.num_experts)
            module = model.get_submodule(checkpoint.anatomy.layers[layer])
            stock = {name: p[expert] for name, p in module.named_parameters(recurse=False)}
            own = checkpoint.expert(key)
            assert own.keys() == stock.keys()
            for name, tensor in own.items():
                assert tensor.dtype == stock[name].dtype and torch.equal(tensor, stock[name]), (key, name)


@pytest.mark.parametrize("fused", [False, True], ids=["per-expert", "fused"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_experts_are_bit_equal_to_stock(arch: str, fused: bool, tmp_path: Path) -> None:
    assert_equal_to_stock(make_checkpoint(arch, tmp_path, fused=fused))


@pytest.mark.parametrize("arch", ["mixtral", "gpt_oss"])
def test_experts_of_a_sharded_bfloat16_checkpoint_are_bit_equal_to_stock(arch: str, tmp_path: Path) -> None:
    folder = make_checkpoint(arch, tmp_path, dtype="bfloat16", max_shard_size="150KB")
    assert len(list(folder.glob("*.safetensors"))) > 5
    assert_equal_to_stock(folder)


def test_experts_numbered_beyond_nine_keep_their_order(tmp_path: Path) -> None:
    assert_equal_to_stock(make_checkpoint("qwen3_moe", tmp_path, num_experts=12))


@pytest.mark.parametrize("fused", [False, True], ids=["per-expert", "fused"])
def test_a_single_expert_is_read_as_one(fused: bool, tmp_path: Path) -> None:
    folder = make_checkpoint("mixtral", tmp_path, fused=fused, num_local_experts=1, num_experts_per_tok=1)
    assert_equal_to_stock(folder)


def test_dense_and_expert_tensors_make_up_the_checkpoint(tmp_path: Path) -> None:
    folder = make_checkpoint("qwen2_moe", tmp_path)
    with Checkpoint.open(folder) as checkpoint:
        names = {entry.name for entry in checkpoint.dense}
    assert "model.layers.0.mlp.shared_expert.up_proj.weight" in names
    assert "model.layers.0.mlp.gate.weight" in names
    assert not any(".experts." in name for name in names)


def test_only_moe_layers_are_counted(tmp_path: Path) -> None:
    with Checkpoint.open(make_checkpoint("qwen3_moe", tmp_path)) as checkpoint:
        assert checkpoint.anatomy.layers == ("model.layers.0.mlp.experts", "model.layers.2.mlp.experts")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_top_k_is_the_routers(arch: str, tmp_path: Path) -> None:
    with Checkpoint.open(make_checkpoint(arch, tmp_path)) as checkpoint:
        assert checkpoint.anatomy.top_k == tiny_config(arch).num_experts_per_tok
        assert checkpoint.anatomy.architecture == type(checkpoint.anatomy.model).__name__
