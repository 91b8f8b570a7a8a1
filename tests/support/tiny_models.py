"""Tiny random checkpoints of the supported architectures, as transformers itself would write them.

Every side that is quantized is a multiple of 64. All parameters are random (biases, norms and
correction terms too), so that a parameter that is forgotten changes the logits. No tokenizer.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

logging.disable_progress_bar()

_COMMON: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MLA: dict[str, Any] = {
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "intermediate_size": 192,
    "moe_intermediate_size": 64,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": None,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
}
_SHAPES: dict[str, dict[str, Any]] = {
    "mixtral": {"intermediate_size": 192, "num_local_experts": 4},
    "olmoe": {"intermediate_size": 64, "num_experts": 8, "num_experts_per_tok": 3},
    "qwen2_moe": {
        "intermediate_size": 192,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 128,
        "num_experts": 6,
    },
    "qwen3_moe": {
        "num_hidden_layers": 3,
        "intermediate_size": 192,
        "moe_intermediate_size": 64,
        "num_experts": 8,
        "head_dim": 32,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
    },
    "deepseek_v2": {**_MLA, "topk_method": "greedy"},
    "deepseek_v3": {**_MLA, "q_lora_rank": 32, "n_group": 2, "topk_group": 1},
    "gpt_oss": {"intermediate_size": 192, "num_local_experts": 4, "head_dim": 32, "sliding_window": 32},
    "granitemoe": {"intermediate_size": 192, "num_local_experts": 4, "residual_multiplier": 0.5},
}

ARCHITECTURES: tuple[str, ...] = tuple(_SHAPES)


def make_checkpoint(
    arch: str,
    folder: Path,
    *,
    fused: bool = False,
    seed: int = 0,
    dtype: str = "float32",
    max_shard_size: str = "1GB",
    **overrides: Any,
) -> Path:
    """Write a random checkpoint of `arch` into `folder` and return it.

    `fused` writes the experts under the module's own names, [E, ...] at once; otherwise they are
    written the way the architecture publishes them (for gpt_oss that is the fused way).
    `max_shard_size` splits what is not fused; `overrides` replace entries of the configuration.
    """
    model = random_model(tiny_config(arch, **overrides), seed).to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if fused:
        _rewrite_fused(model, folder)
    return folder


def tiny_config(arch: str, **overrides: Any) -> PreTrainedConfig:
    """The tiny configuration of `arch`."""
    config: PreTrainedConfig = transformers.AutoConfig.for_model(
        arch, **{**_COMMON, **_SHAPES[arch], **overrides}
    )
    return config


def random_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A model of `config` in float32 whose every parameter and persistent buffer is random."""
    model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(model.state_dict().items()):
            if tensor.is_floating_point():
                _randomise(name, tensor, generator)
    model.tie_weights()
    return model.eval()


def _randomise(name: str, tensor: torch.Tensor, generator: torch.Generator) -> None:
    noise = torch.randn(tensor.shape, generator=generator)
    if tensor.ndim >= 2 and not name.endswith("_bias"):
        tensor.copy_(noise * tensor.shape[-1] ** -0.5)
    elif "norm" in name:
        tensor.copy_(1 + 0.1 * noise)
    else:
        tensor.copy_(0.1 * noise)


def _rewrite_fused(model: PreTrainedModel, folder: Path) -> None:
    """Replace the weights that `save_pretrained` wrote by the model's own state, tied weights once."""
    tied = set(model.all_tied_weights_keys)
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    for written in (*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")):
        written.unlink()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
