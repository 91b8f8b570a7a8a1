"""What a model is made of: its MoE layers and the one layout that their experts share.

Builds the model on the meta device from its config alone, so no weight is read and no memory used.
Refuses, with a sentence, models that cannot be served. Knows nothing of files or of quantization.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from loader.source import read_config
from protocol.errors import ModelError

_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_TOP_K_NAMES = ("num_experts_per_tok", "moe_topk", "moe_top_k", "top_k_experts", "top_k")


@dataclass(frozen=True, slots=True)
class ExpertParameter:
    """One parameter of the experts module; `shape` is that of one expert, without the expert dimension."""

    name: str
    shape: tuple[int, ...]

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) == 2


@dataclass(frozen=True, slots=True)
class Anatomy:
    """`layers` names the experts modules in the order of the layers; matrices come before biases.

    `model` holds no weights: every parameter of it is on the meta device.
    """

    model: transformers.PreTrainedModel
    model_type: str
    architecture: str
    dtype: str
    layers: tuple[str, ...]
    parameters: tuple[ExpertParameter, ...]
    num_experts: int
    top_k: int
    is_transposed: bool


def study(folder: Path) -> Anatomy:
    """The anatomy of the checkpoint in `folder`. Raises ModelError with a sentence."""
    _refuse_quantized(folder)
    model = _build(folder)
    experts = dict(_experts_modules(model))
    if not experts:
        raise ModelError(_why_no_experts(model))
    layouts = {name: _layout(name, module) for name, module in experts.items()}
    first_name, first = next(iter(layouts.items()))
    for name, layout in layouts.items():
        if layout != first:
            raise ModelError(
                f"the MoE layers of {type(model).__name__} do not share one layout "
                f"({first_name} is {first}, {name} is {layout}): such a model cannot be served"
            )
    num_experts, is_transposed, parameters = first
    return Anatomy(
        model=model,
        model_type=str(model.config.model_type),
        architecture=type(model).__name__,
        dtype=_dtype_name(model.config),
        layers=tuple(experts),
        parameters=parameters,
        num_experts=num_experts,
        top_k=max(_top_k(model, name) for name in experts),
        is_transposed=is_transposed,
    )


def _refuse_quantized(folder: Path) -> None:
    config = read_config(folder)
    for part in (config, config.get("text_config")):
        quantization = part.get("quantization_config") if isinstance(part, dict) else None
        if quantization:
            method = (
                quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else "unknown"
            )
            raise ModelError(
                f"{folder.name} is quantized already ({method}), which is refused here and supported later: "
                "use a checkpoint in bfloat16, float16 or float32"
            )


def _build(folder: Path) -> transformers.PreTrainedModel:
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model_class = _model_class(config)
        with torch.device("meta"):
            model: transformers.PreTrainedModel = model_class._from_config(config)
        return model.eval()
    except ModelError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"transformers cannot build the model in {folder}: {reason}") from error


def _model_class(config: Any) -> Any:
    """The class that the checkpoint was saved as, else what a causal language model of its type is."""
    for name in config.architectures or ():
        model_class = getattr(transformers, name, None)
        if model_class is not None and hasattr(model_class, "generate"):
            return model_class
    known = transformers.AutoModelForCausalLM._model_mapping
    if type(config) not in known:
        raise ModelError(
            f"a model of type {config.model_type!r} is no language model that transformers knows: "
            "only causal language models can be served"
        )
    return known[type(config)]


def _experts_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that dispatch through transformers' experts interface, which sets these flags on them."""
    for name, module in model.named_modules():
        if hasattr(module, "is_concatenated") and hasattr(module, "is_transposed"):
            yield name, module


def _why_no_experts(model: transformers.PreTrainedModel) -> str:
    text_config = model.config.get_text_config()
    model_type = model.config.model_type
    if any((getattr(text_config, name, None) or 0) > 1 for name in _EXPERT_COUNTS):
        return (
            f"{model_type!r} keeps its experts off transformers' experts interface and cannot be served: "
            "choose another architecture (mixtral, olmoe, qwen3_moe, deepseek_v3, gpt_oss, ...)"
        )
    return f"{model_type!r} has no experts: sidestage runs Mixture-of-Experts models only"


def _layout(name: str, module: Any) -> tuple[int, bool, tuple[ExpertParameter, ...]]:
    """(num_experts, is_transposed, parameters), refused unless it is what the kernels can run."""
    parameters = {n: tuple(p.shape) for n, p in module.named_parameters(recurse=False)}
    up = "gate_up_proj" if module.has_gate else "up_proj"
    expected = [up, "down_proj"] + ([f"{up}_bias", "down_proj_bias"] if module.has_bias else [])
    num_experts = int(module.num_experts)
    if set(parameters) != set(expected) or any(
        shape[0] != num_experts or len(shape) != (2 if n.endswith("_bias") else 3)
        for n, shape in parameters.items()
    ):
        raise ModelError(
            f"{name} has the parameters {parameters}, expected {expected} by expert: not supported"
        )
    ordered = tuple(ExpertParameter(n, parameters[n][1:]) for n in expected)
    return num_experts, bool(module.is_transposed), ordered


def _top_k(model: transformers.PreTrainedModel, experts_name: str) -> int:
    """What the router beside the experts says, else its parent, else the config."""
    parent = model.get_submodule(experts_name.rpartition(".")[0])
    for module in (*parent.children(), parent):
        top_k = getattr(module, "top_k", None)
        if isinstance(top_k, int):
            return top_k
    text_config = model.config.get_text_config()
    for name in _TOP_K_NAMES:
        top_k = getattr(text_config, name, None)
        if isinstance(top_k, int):
            return top_k
    raise ModelError(
        f"neither the router beside {experts_name} nor the config says how many experts a token uses"
    )


def _dtype_name(config: Any) -> str:
    """The config's dtype ("bfloat16", ...), or "" when it names none."""
    dtype = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return str(dtype).removeprefix("torch.") if dtype else ""
