"""generate with a static cache: when it gets one, and what is left as it was."""

from collections.abc import Iterator
from typing import Any

import pytest
import transformers
from support.tiny_models import random_model, tiny_config
from support.tiny_stores import prompt
from transformers import DynamicCache, GenerationConfig, StaticCache

from compute.beside.static_generation import prepare


@pytest.fixture(scope="module")
def olmoe() -> transformers.PreTrainedModel:
    return random_model(tiny_config("olmoe"))


@pytest.fixture
def prepared(olmoe: transformers.PreTrainedModel) -> Iterator[transformers.PreTrainedModel]:
    end = prepare(olmoe)
    yield olmoe
    end()
    del olmoe.generate


def generate(model: transformers.PreTrainedModel, batch: int = 1, **settings: Any) -> Any:
    """Two tokens; the answer holds the cache."""
    settings = {"do_sample": False, "max_new_tokens": 2, "return_dict_in_generate": True, **settings}
    given = settings.pop("given", {"input_ids": prompt(batch=batch)})
    return model.generate(**given, **settings)


def test_a_generate_without_a_cache_gets_a_static_one(prepared: transformers.PreTrainedModel) -> None:
    assert isinstance(generate(prepared).past_key_values, StaticCache)
    assert isinstance(generate(prepared, batch=8).past_key_values, StaticCache)
    plain = GenerationConfig(do_sample=False, max_new_tokens=2, return_dict_in_generate=True)
    assert isinstance(prepared.generate(prompt(), plain).past_key_values, StaticCache)


def test_a_caller_who_names_a_cache_gets_that_one(prepared: transformers.PreTrainedModel) -> None:
    named = generate(prepared, cache_implementation="dynamic").past_key_values
    assert isinstance(named, DynamicCache)
    config = GenerationConfig(
        do_sample=False, max_new_tokens=2, return_dict_in_generate=True, cache_implementation="dynamic"
    )
    assert isinstance(prepared.generate(prompt(), config).past_key_values, DynamicCache)


def test_a_callers_cache_is_used_and_a_static_one_is_not_compiled_for(
    prepared: transformers.PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def may_compile(model_kwargs: object, config: GenerationConfig) -> bool:
        seen.append(config.disable_compile)
        return False

    monkeypatch.setattr(prepared, "_valid_auto_compile_criteria", may_compile)
    for cache in (DynamicCache(), StaticCache(config=prepared.config, max_cache_len=16), None):
        output = generate(prepared, past_key_values=cache)
        assert cache is None or output.past_key_values is cache
    assert seen == [True, True, True]


@pytest.mark.parametrize(
    "settings",
    [
        {"batch": 9},
        {"batch": 5, "num_return_sequences": 2, "do_sample": True},
        {"num_beams": 2},
        {"prompt_lookup_num_tokens": 2},
        {"generation_config": GenerationConfig(num_beams=2, max_new_tokens=2)},
    ],
    ids=["nine rows", "ten rows", "beams", "looked up", "beams in a config"],
)
def test_where_it_would_not_help_the_cache_is_a_dynamic_one(
    prepared: transformers.PreTrainedModel, settings: dict[str, Any]
) -> None:
    assert isinstance(generate(prepared, **settings).past_key_values, DynamicCache)


def test_without_a_cache_none_is_made(prepared: transformers.PreTrainedModel) -> None:
    assert generate(prepared, use_cache=False).past_key_values is None


def test_embeddings_are_a_prompt_too(prepared: transformers.PreTrainedModel) -> None:
    embeds = prepared.get_input_embeddings()(prompt(batch=9)).detach()
    found = generate(prepared, given={"inputs_embeds": embeds}).past_key_values
    assert isinstance(found, DynamicCache)
    found = generate(prepared, given={"inputs_embeds": embeds[:2]}).past_key_values
    assert isinstance(found, StaticCache)


def test_the_models_own_settings_stay_as_they_are(prepared: transformers.PreTrainedModel) -> None:
    before = prepared.generation_config.to_dict()
    generate(prepared)
    with pytest.raises(ValueError):
        generate(prepared, max_new_tokens=-1)
    assert prepared.generation_config.to_dict() == before


def test_it_ends(olmoe: transformers.PreTrainedModel) -> None:
    prepare(olmoe)()
    assert isinstance(generate(olmoe).past_key_values, DynamicCache)
    del olmoe.generate


def test_a_model_with_a_sliding_window_keeps_its_own_generate() -> None:
    model = random_model(tiny_config("gpt_oss"))
    prepare(model)
    assert isinstance(generate(model).past_key_values, DynamicCache)


def test_an_attention_whose_mask_grows_keeps_its_own_generate() -> None:
    model = random_model(tiny_config("olmoe"))
    model.config._attn_implementation = "flash_attention_2"
    prepare(model)
    assert "generate" not in vars(model)
