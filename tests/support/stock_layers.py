"""The MoE layers of the shipped model as transformers makes it, without a probe to find them."""

from transformers import PreTrainedModel

from compute.discovery import MoeLayer


def stock_layers(model: PreTrainedModel) -> list[MoeLayer]:
    """As discovery finds them in a model that is offloaded."""
    return [
        MoeLayer(index, f"layers.{index}", b.mlp.experts, b.mlp.gate, b.post_attention_layernorm, "")
        for index, b in enumerate(model.model.layers)
    ]
