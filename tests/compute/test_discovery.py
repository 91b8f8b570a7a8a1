"""Discovery: MoE layers in forward order, their routers and the norms that feed them."""

from pathlib import Path

import pytest
import torch
import transformers
from support.tiny_models import ARCHITECTURES
from support.tiny_stores import make_tiny_store, prompt
from torch import nn

from compute import experts, skeleton
from compute.discovery import MoeLayer, discover
from protocol.errors import ModelError
from protocol.manifest import Manifest


def skeleton_of(arch: str, folder: Path) -> tuple[transformers.PreTrainedModel, Manifest]:
    _, store = make_tiny_store(arch, folder)
    manifest = Manifest.read(store)
    return skeleton.build(store, manifest, "auto", "cpu")[0], manifest


def name_of(model: nn.Module, module: nn.Module | None) -> str:
    return next(name for name, candidate in model.named_modules() if candidate is module)


def skip_if_router_is_of_the_old_order(arch: str) -> None:
    release = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if arch == "granitemoe" and release < (5, 23):
        pytest.skip(
            "GraniteMoE's router answered in another order: without speculative gate, said in a notice"
        )


class Witness:
    """A stage that answers zeros and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, torch.Tensor]] = []

    def run_layer(
        self, module: nn.Module, layer: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        self.asked.append((layer, index))
        return torch.zeros_like(hidden)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_layers_are_found_in_forward_order_with_router_and_norm(arch: str, tmp_path: Path) -> None:
    model, manifest = skeleton_of(arch, tmp_path)
    layers = discover(model)
    skip_if_router_is_of_the_old_order(arch)
    assert [layer.name for layer in layers] == list(manifest.layers)
    assert [layer.index for layer in layers] == list(range(len(layers)))
    for layer in layers:
        assert layer.gate_reason == ""
        assert name_of(model, layer.norm).endswith(".post_attention_layernorm")
        assert name_of(model, layer.router).rpartition(".")[2] in ("gate", "router")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_router_of_norm_of_the_residual_is_the_layers_choice(arch: str, tmp_path: Path) -> None:
    model, _ = skeleton_of(arch, tmp_path)
    layers = discover(model)
    skip_if_router_is_of_the_old_order(arch)
    residuals: list[torch.Tensor] = []
    witness = Witness()
    for layer in layers:
        experts.bind(layer.experts, witness, layer.index)
        assert layer.norm is not None
        layer.norm.register_forward_pre_hook(lambda _, args: residuals.append(args[0].clone()))
    model(input_ids=prompt())
    assert [number for number, _ in witness.asked] == [layer.index for layer in layers]
    for layer, residual, (_, index) in zip(layers, residuals, witness.asked, strict=True):
        assert torch.equal(peek(layer, residual), index)


def peek(layer: MoeLayer, residual: torch.Tensor) -> torch.Tensor:
    """What the speculative gate says: int64 [T, K]."""
    assert layer.router is not None and layer.norm is not None
    hidden = layer.norm.forward(residual.reshape(-1, residual.shape[-1]))
    index: torch.Tensor = layer.router.forward(hidden)[2]
    return index


def test_the_probe_leaves_no_hook_and_no_stage(tmp_path: Path) -> None:
    model, _ = skeleton_of("mixtral", tmp_path)
    before = hooks_of(model)
    discover(model)
    assert hooks_of(model) == before
    assert all("_sidestage" not in m.__dict__ for m in model.modules())


def hooks_of(model: nn.Module) -> list[tuple[str, int]]:
    """Every module's hooks."""
    return [
        (name, hook)
        for name, m in model.named_modules()
        for hook in (*m._forward_hooks, *m._forward_pre_hooks)
    ]


def test_a_probe_that_fails_leaves_no_hook_and_no_stage_either(tmp_path: Path) -> None:
    model, _ = skeleton_of("mixtral", tmp_path)
    final_norm = model.model.norm
    model.model.norm = nn.Linear(3, 3)
    with pytest.raises(RuntimeError):
        discover(model)
    model.model.norm = final_norm
    assert all(not m._forward_hooks and "_sidestage" not in m.__dict__ for m in model.modules())


def test_a_model_without_experts_is_refused() -> None:
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(ModelError, match="LlamaForCausalLM has no experts"):
        discover(transformers.LlamaForCausalLM(config))


def test_a_router_that_needs_more_than_hidden_states_is_named_as_the_reason() -> None:
    model = tiny("minimax_m2", num_local_experts=4, head_dim=16)
    assert {layer.gate_reason for layer in discover(model)} == {"its router needs more than hidden states"}


def test_a_layer_without_a_norm_before_its_router_is_named_as_the_reason() -> None:
    model = tiny("flex_olmo", num_experts=4)
    assert {layer.gate_reason for layer in discover(model)} == {"no norm feeds its router"}


def test_another_norm_than_the_usual_one_is_found() -> None:
    model = tiny("cohere2_moe", num_experts=4)
    (layer,) = discover(model)
    assert layer.gate_reason == ""
    assert name_of(model, layer.norm) == "model.layers.0.input_layernorm"


def tiny(arch: str, **config: object) -> transformers.PreTrainedModel:
    """A random one-layer model that asks sidestage for its experts."""
    experts.register()
    words: dict[str, object] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_experts_per_tok": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **config,
    }
    return transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(arch, **words), experts_implementation=experts.IMPLEMENTATION
    ).eval()


def test_experts_without_a_stage_say_what_to_do(tmp_path: Path) -> None:
    model, _ = skeleton_of("mixtral", tmp_path)
    with pytest.raises(RuntimeError, match="call `offload` again"):
        model(input_ids=prompt())


def test_experts_refuse_to_be_differentiated(tmp_path: Path) -> None:
    model, _ = skeleton_of("mixtral", tmp_path)
    for layer in discover(model):
        experts.bind(layer.experts, Witness(), layer.index)
    embeddings = model.get_input_embeddings()(prompt()).requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"call it under torch\.no_grad"):
        model(inputs_embeds=embeddings)
