"""A manifest of no store in particular, for what only counts experts and bytes."""

from protocol.blob import BlobLayout
from protocol.manifest import Manifest, Shard

STRIDE = 4096


def manifest_of(num_layers: int = 4, num_experts: int = 8, top_k: int = 2) -> Manifest:
    num_keys = num_layers * num_experts
    return Manifest(
        model_type="any",
        architecture="AnyForCausalLM",
        source="any",
        dtype="float32",
        fast=False,
        quantized_on="",
        num_experts=num_experts,
        top_k=top_k,
        layers=tuple(f"layers.{layer}.experts" for layer in range(num_layers)),
        layout=BlobLayout.pack("none", 0, [("down_proj", "uint8", (STRIDE,))]),
        shards=(Shard("experts.safetensors", 0, num_keys, STRIDE),),
        checksums=(0,) * num_keys,
    )
