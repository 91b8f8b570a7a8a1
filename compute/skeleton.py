"""The skeleton: a stock transformers model without its experts, built from a store.

Owns the one place where weight loading is bent: a quantizer that takes the expert parameters
away before any weight is read, so that they never exist. Knows nothing of slots or loaders.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.quantizers import register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from compute import experts
from compute.head import straighten_rows
from protocol.errors import MemoryBudgetError, ModelError, StoreError
from protocol.manifest import Manifest
from protocol.units import format_size

OLDEST_TRANSFORMERS = (5, 17)
FIRST_UNKNOWN_TRANSFORMERS = (6, 0)

_METHOD = "sidestage"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


class ExpertlessConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """Asks `from_pretrained` for `ExpertlessQuantizer`; holds nothing."""

    def __init__(self) -> None:
        self.quant_method = _METHOD


class ExpertlessQuantizer(HfQuantizer):  # type: ignore[misc]
    """Takes every expert parameter off the empty model; the dense weights load as always."""

    requires_calibration = False

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: object) -> None:
        for module in model.modules():
            if experts.is_experts_module(module):
                for name in module._parameters:
                    module._parameters[name] = None
                module._is_hf_initialized = True  # nothing is left to initialise

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: object) -> None:
        self.remove_quantization_config(model)
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                module.config.__dict__.pop("_is_quantized", None)

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def build(
    store: Path, manifest: Manifest, dtype: str, device: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """The model of `store` without expert parameters, and its tokenizer when the store has one.

    `dtype` "auto" is the checkpoint's own. Raises ModelError for an architecture or a transformers
    version that cannot be served, StoreError when the dense weights do not fit the architecture,
    MemoryBudgetError when they do not fit on the device.
    """
    check_transformers_version(transformers.__version__)
    _register()
    model, info = _architecture(manifest).from_pretrained(
        store,
        dtype=torch_dtype(dtype, manifest),
        quantization_config=ExpertlessConfig(),
        experts_implementation=experts.IMPLEMENTATION,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    _check_loading(store, info)
    model.requires_grad_(False)
    straighten_rows(model)
    return _moved(model, device), _tokenizer(store)


def _moved(model: PreTrainedModel, device: str) -> PreTrainedModel:
    try:
        return model.to(device)
    except torch.OutOfMemoryError:
        raise MemoryBudgetError(
            f"the model without its experts takes {format_size(parameter_bytes(model))}, and {device} has "
            f"less than that free: pass --device cpu, or free some of its memory"
        ) from None


def torch_dtype(dtype: str, manifest: Manifest) -> torch.dtype:
    """`dtype` as torch knows it. Raises ValueError naming the known ones."""
    name = manifest.dtype if dtype == "auto" else dtype
    if name not in _DTYPES:
        raise ValueError(f"dtype {name!r} is not known: use auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of all parameters the model really holds, each storage counted once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def check_transformers_version(version: str) -> None:
    """Raise ModelError unless `version` is one this was written for."""
    release = tuple(int(part) for part in version.split(".")[:2])
    if not OLDEST_TRANSFORMERS <= release < FIRST_UNKNOWN_TRANSFORMERS:
        raise ModelError(
            f"transformers {version} is installed, sidestage works with "
            f"{'.'.join(map(str, OLDEST_TRANSFORMERS))} up to but not including "
            f"{'.'.join(map(str, FIRST_UNKNOWN_TRANSFORMERS))}: install one of these"
        )


def _register() -> None:
    experts.register()
    if _METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(_METHOD)(ExpertlessConfig)
        register_quantizer(_METHOD)(ExpertlessQuantizer)


def _architecture(manifest: Manifest) -> type[PreTrainedModel]:
    """The model's class, from transformers itself and nowhere else."""
    known: object = getattr(transformers, manifest.architecture, None)
    if not (isinstance(known, type) and issubclass(known, PreTrainedModel)):
        raise ModelError(
            f"the architecture {manifest.architecture!r} is not in transformers {transformers.__version__}: "
            f"a newer transformers may know it, code from a model's own repository is not run"
        )
    return known


def _check_loading(store: Path, info: dict[str, Any]) -> None:
    """Stock transformers fills a missing weight with noise and a warning; here it is an error."""
    for kind in ("missing_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in info[kind])
        if keys:
            raise StoreError(
                f"the dense weights in {store} do not fit the model: {len(keys)} {kind.replace('_', ' ')}, "
                f"the first is {keys[0]}; convert the model again"
            )


def _tokenizer(store: Path) -> PreTrainedTokenizerBase | None:
    if not any((store / name).is_file() for name in _TOKENIZER_FILES):
        return None
    return AutoTokenizer.from_pretrained(store, local_files_only=True, trust_remote_code=False)
