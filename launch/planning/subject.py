"""The subject of a plan: what a model is made of, from its config and index alone.

Builds the model on the meta device, so no weight is read and no memory used, and runs one pass of
the asked length over it: the cache that it leaves is the KV cache, whatever the architecture.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from compute import experts
from compute.cache_folder import Quantization, check_quantization
from launch.sampling import context_of
from loader.anatomy import Anatomy, study
from loader.quantize import plan_layout
from loader.source import INDEX_FILE, hub_folder, is_store, local_folder
from protocol.errors import ModelError
from protocol.manifest import Manifest, Shard

#: A manifest's shards start on a page; nobody reads the ones made up here.
_DATA_OFFSET = 4096


@dataclass(frozen=True, slots=True)
class Subject:
    """Sizes in bytes. `manifest` is the store's, or what a conversion would write, checksums aside.

    `dense_bytes`: all that is no expert; `worked_bytes`: the part that every token multiplies with,
    the embedding table aside; `kv_bytes`: the cache of one sequence of `context` tokens;
    `download_bytes`: the checkpoint's weights, None where nothing says.
    """

    name: str
    manifest: Manifest
    hidden: int
    intermediate: int
    dense_bytes: int
    worked_bytes: int
    context: int
    longest_context: int | None
    kv_bytes: int
    download_bytes: int | None
    is_store: bool


def subject_of(model: str, quantization: Quantization, context: int | None) -> Subject:
    """Study `model`: a checkpoint's folder (a config is enough), a store, or a hub id.

    `context` None: 4096, or as long as the model goes. Raises ModelError, StoreError or ValueError.
    """
    folder = local_folder(model) or hub_folder(model, [INDEX_FILE])
    has_manifest = is_store(folder)
    anatomy = study(folder)
    if has_manifest:
        manifest = Manifest.read(folder)
        check_quantization(folder, manifest, quantization)
    else:
        manifest = _planned_manifest(model, anatomy, quantization)
    longest = context_of(anatomy.model)
    length = _length(context, longest)
    hidden, intermediate = _sides(anatomy)
    dense, worked = _dense(anatomy)
    return Subject(
        name=model,
        manifest=manifest,
        hidden=hidden,
        intermediate=intermediate,
        dense_bytes=dense,
        worked_bytes=worked,
        context=length,
        longest_context=longest,
        kv_bytes=kv_cache_bytes(anatomy, length),
        download_bytes=None if has_manifest else _weight_bytes(folder),
        is_store=has_manifest,
    )


def kv_cache_bytes(anatomy: Anatomy, num_tokens: int) -> int:
    """What a pass over `num_tokens` tokens leaves in the cache, in the model's dtype.

    Raises ModelError when the model cannot be run without weights.
    """
    model = anatomy.model
    tokens = torch.ones(1, num_tokens, dtype=torch.long, device="meta")
    with _silenced(anatomy), torch.no_grad():
        try:
            cache = model(input_ids=tokens, use_cache=True).past_key_values
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(
                f"the KV cache of {anatomy.architecture} cannot be told from its config: {reason}"
            ) from error
    held = [value for layer in getattr(cache, "layers", []) for value in vars(layer).values()]
    return sum(value.numel() * value.element_size() for value in held if isinstance(value, Tensor))


@contextmanager
def _silenced(anatomy: Anatomy) -> Iterator[None]:
    """Experts answer with zeros: what they compute changes no shape."""
    modules = [anatomy.model.get_submodule(name) for name in anatomy.layers]
    experts.register()
    anatomy.model.set_experts_implementation(experts.IMPLEMENTATION)
    for module in modules:
        experts.bind(module, _Zeros(), layer=-1)
    try:
        yield
    finally:
        for module in modules:
            experts.unbind(module)


class _Zeros:
    def run_layer(
        self, module: nn.Module, layer: int, hidden: Tensor, index: Tensor, weights: Tensor
    ) -> Tensor:
        return torch.zeros_like(hidden)


def _planned_manifest(model: str, anatomy: Anatomy, quantization: Quantization) -> Manifest:
    """What `convert` would write. No weight is looked at, so there are no checksums."""
    bits, group, fast = quantization.settled()
    dtype = getattr(torch, anatomy.dtype or "bfloat16")
    layout = plan_layout(anatomy, {each.name: dtype for each in anatomy.parameters}, bits, group)
    num_keys = len(anatomy.layers) * anatomy.num_experts
    return Manifest(
        model_type=anatomy.model_type,
        architecture=anatomy.architecture,
        source=model,
        dtype=anatomy.dtype or "bfloat16",
        fast=fast,
        quantized_on="",
        num_experts=anatomy.num_experts,
        top_k=anatomy.top_k,
        layers=anatomy.layers,
        layout=layout,
        shards=(Shard("planned.safetensors", 0, num_keys, _DATA_OFFSET),),
        checksums=(0,) * num_keys,
    )


def _length(context: int | None, longest: int | None) -> int:
    if context is None:
        return min(4096, longest or 4096)
    if context < 1:
        raise ValueError(f"--context is {context}; it must be at least 1 token")
    if longest is not None and context > longest:
        raise ValueError(
            f"--context is {context}, and the model's context holds {longest} tokens: pass fewer"
        )
    return context


def _sides(anatomy: Anatomy) -> tuple[int, int]:
    """(hidden, intermediate) of an expert."""
    up, down = (parameter.shape for parameter in anatomy.parameters[:2])
    return (up[0], down[0]) if anatomy.is_transposed else (up[1], down[1])


def _dense(anatomy: Anatomy) -> tuple[int, int]:
    """Bytes of everything that is no expert, and of that without an embedding table of its own."""
    model = anatomy.model
    dtype = getattr(torch, anatomy.dtype) if anatomy.dtype else torch.bfloat16
    of_experts = {
        id(parameter) for name in anatomy.layers for parameter in model.get_submodule(name).parameters()
    }
    dense = {id(each): each for each in model.parameters() if id(each) not in of_experts}
    num_bytes = sum(each.numel() for each in dense.values()) * dtype.itemsize
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    is_its_own = head is not None and head.weight is not embedding
    own = embedding.numel() * dtype.itemsize if is_its_own else 0
    return num_bytes, num_bytes - own


def _weight_bytes(folder: Path) -> int | None:
    """What the index says, else the files that are there."""
    try:
        total = json.loads((folder / INDEX_FILE).read_text())["metadata"]["total_size"]
    except FileNotFoundError:
        return sum(path.stat().st_size for path in folder.glob("*.safetensors")) or None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return int(total) if isinstance(total, int | float) and total > 0 else None
