"""Synthetic stores and checkpoints: whole, of the real dimensions, and plausible."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support.stores import read_blobs

from launch.bench import shapes
from launch.bench.synthesis import Recipe, make_checkpoint, make_store
from protocol.manifest import Manifest

#: Megabytes of an expert at 4 bits in groups of 64, as known of these models.
EXPERT_MB = {"olmoe-1b-7b": 3.539, "deepseek-v2-lite": 4.866, "gpt-oss-20b": 13.997, "mixtral-8x7b": 99.09}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shape of OLMoE, made small."""
    config = shapes.config_of("olmoe-1b-7b", 2)
    config |= {"hidden_size": 128, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 512}
    monkeypatch.setattr(shapes, "config_of", lambda *_: {**config, "num_key_value_heads": 2})


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("bits", ["4", "3", "none"])
def test_a_store_really_has_every_expert(tmp_path: Path, bits: str) -> None:
    make_store(tmp_path / "store", Recipe("olmoe-1b-7b", 2, bits, 64))
    manifest = Manifest.read(tmp_path / "store")
    blobs = read_blobs(tmp_path / "store")
    assert len(blobs) == manifest.num_keys == 128
    assert len({blob.tobytes() for blob in blobs}) > 1


@pytest.mark.usefixtures("small")
def test_what_was_made_is_left_as_it_is(tmp_path: Path) -> None:
    recipe = Recipe("olmoe-1b-7b", 2, "4", 64)
    make_store(tmp_path / "store", recipe)
    before = (tmp_path / "store" / "manifest.json").stat().st_mtime_ns
    make_store(tmp_path / "store", recipe)
    assert (tmp_path / "store" / "manifest.json").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.usefixtures("small")
def test_a_checkpoint_loads_into_stock_transformers_without_a_gap(tmp_path: Path) -> None:
    from transformers import OlmoeForCausalLM

    make_checkpoint(tmp_path / "model", Recipe("olmoe-1b-7b", 2, "checkpoint", 0))
    model, info = OlmoeForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert model.model.norm.weight.eq(1).all()
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        experts = file.get_tensor("model.layers.1.mlp.experts.gate_up_proj")
    assert experts.shape == (64, 128, 128)
    assert experts.float().std() == pytest.approx(0.02, rel=0.02)


@pytest.mark.usefixtures("small")
def test_random_codes_make_weights_of_the_usual_size(tmp_path: Path) -> None:
    make_store(tmp_path / "store", Recipe("olmoe-1b-7b", 2, "4", 64))
    layout = Manifest.read(tmp_path / "store").layout
    blob = torch.from_numpy(read_blobs(tmp_path / "store")[0])
    parts = {s.name: blob[s.offset : s.offset + s.num_bytes] for s in layout.segments}
    codes = parts["gate_up_proj.q"].view(64, 128).float() // 16
    scale = parts["gate_up_proj.scale"].view(torch.float16).view(128, 2)[:64].float()
    zero = parts["gate_up_proj.zero"].view(torch.float16).view(128, 2)[:64].float()
    weights = (codes.view(64, 2, 64) - zero[..., None]) * scale[..., None]
    assert weights.std() == pytest.approx(0.02, rel=0.1)
    assert abs(weights.mean()) < 0.005


@pytest.mark.parametrize("shape", shapes.names())
def test_every_shape_is_a_config_that_can_be_cut(shape: str) -> None:
    config = shapes.config_of(shape, 2)
    assert config["num_hidden_layers"] == 2
    assert json.dumps(shapes.config_of(shape)) != json.dumps(config)


@pytest.mark.parametrize("shape", EXPERT_MB)
def test_an_expert_is_as_large_as_the_real_model_s(shape: str, tmp_path: Path) -> None:
    from loader.anatomy import study
    from loader.quantize import plan_layout

    (tmp_path / "config.json").write_text(json.dumps(shapes.config_of(shape, 2)))
    anatomy = study(tmp_path)
    dtypes = {parameter.name: torch.bfloat16 for parameter in anatomy.parameters}
    stride = plan_layout(anatomy, dtypes, "4", 64).stride
    assert stride / 1e6 == pytest.approx(EXPERT_MB[shape], rel=0.002)
