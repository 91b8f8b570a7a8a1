"""What `generate` needs so that a token's forward can be recorded: a static cache, and no torch.compile.

Owns when that is asked for and when it would do harm. Nothing of it stays in the model's own settings.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer

from compute.kernels.triton_plan import MAX_DECODE_TOKENS

_log = logging.getLogger("sidestage")

_STATIC = {"cache_implementation": "static", "disable_compile": True}
_UNCOMPILED = {"disable_compile": True}
#: Flash attention is given a mask that grows, flex attention one that is no tensor.
_MASKS_OF_ONE_SHAPE = ("sdpa", "eager")
#: Ways to generate that give several tokens to a forward, or want to take some of them back.
_OTHER_WAYS = ("assistant_model", "assistant_early_exit", "prompt_lookup_num_tokens", "use_mtp")


def prepare(model: PreTrainedModel) -> Callable[[], None]:
    """From now on `model.generate` uses a static cache where that helps; what is returned ends it.

    A caller's cache is used as it is, and so is a `cache_implementation` that anybody has named. Before
    `Passes.guard`; what is returned holds no reference to the model.
    """
    is_open = [True]
    if not hasattr(model, "generate") or not _can_be_static(model):
        _log.info(
            "no static cache for %s: its cache or its attention would not be static", type(model).__name__
        )
        return is_open.clear
    method = model.generate

    @functools.wraps(method)
    def generate(*args: object, **kwargs: object) -> object:
        wanted = _wanted(model.generation_config, args, kwargs) if is_open else {}
        with _for_now(model.generation_config, wanted):
            return method(*args, **kwargs)

    model.generate = generate
    return is_open.clear


def _can_be_static(model: PreTrainedModel) -> bool:
    """Whether a static cache for `model` would consist of tensors alone, and its mask keep its shape."""
    if model.config.is_encoder_decoder or model.config._attn_implementation not in _MASKS_OF_ONE_SHAPE:
        return False
    try:
        cache = StaticCache(config=model.config, max_cache_len=1)
    except KeyError:
        return False  # a kind of layer for which transformers has no static cache
    return bool(cache.layers) and all(type(layer) is StaticLayer for layer in cache.layers)


def _wanted(
    defaults: GenerationConfig, args: Sequence[object], kwargs: Mapping[str, object]
) -> Mapping[str, object]:
    """Settings for this `generate`. transformers refuses a named implementation beside a cache."""

    def setting(name: str) -> object:
        for source in (kwargs.get(name), getattr(kwargs.get("generation_config"), name, None)):
            if source is not None:
                return source
        return getattr(defaults, name, None)

    if kwargs.get("past_key_values") is not None:
        return _UNCOMPILED
    if setting("use_cache") is False or any(setting(name) for name in _OTHER_WAYS):
        return {}
    if setting("num_beams") not in (None, 1) or kwargs.get("custom_generate") is not None:
        return {}
    prompts = next((given for given in (*args[:1], *map(kwargs.get, _PROMPTS)) if given is not None), None)
    num_rows = len(prompts) if isinstance(prompts, Tensor) else 1
    num_returned = setting("num_return_sequences")
    num_rows *= num_returned if isinstance(num_returned, int) else 1
    return _STATIC if num_rows <= MAX_DECODE_TOKENS else {}


_PROMPTS = ("inputs", "input_ids", "inputs_embeds")


@contextmanager
def _for_now(config: GenerationConfig, wanted: Mapping[str, object]) -> Iterator[None]:
    """`wanted`, for what nobody has set: `generate` reads the model's settings where a call has none."""
    unset = {name: value for name, value in wanted.items() if getattr(config, name, None) is None}
    for name, value in unset.items():
        setattr(config, name, value)
    try:
        yield
    finally:
        for name in unset:
            setattr(config, name, None)
