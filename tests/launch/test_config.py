"""The rules between the settings of `sidestage run`."""

import re

import pytest

from launch.config import RunConfig


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"bits": "5"}, "--bits is '5'; allowed: 8, 4, 3, 2, none"),
        ({"group": 0}, "--group is 0"),
        ({"device": "tpu"}, "--device is 'tpu'; allowed: auto, cpu, cuda"),
        ({"dtype": "int8"}, "--dtype is 'int8'; allowed: auto, bfloat16, float32"),
        ({"arrangement": "ring"}, "allowed: auto, direct, emulated, staged, pinned"),
        ({"predictor": "oracle"}, "allowed: gate, none"),
        ({"predictor": "none", "lookahead": 1}, "--lookahead 1 needs a predictor"),
        ({"lookahead": -1}, "--lookahead is -1"),
        ({"policy": "mru"}, "known are lru, "),
        ({"policy": "belady"}, "the future"),
        ({"max_new_tokens": 0}, "--max-new-tokens is 0"),
        ({"threads": 0}, "--threads is 0"),
        ({"slots": 0}, "--slots is 0"),
        ({"ram": 0}, "--ram is 0"),
        ({"temperature": -0.5}, "--temperature is -0.5"),
        ({"temperature": float("nan")}, "--temperature is nan"),
        ({"top_p": 0.0}, "--top-p is 0"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"slots": 8, "vram": 2**20}, "pass one of them"),
        ({"vram": 2**20, "device": "cpu"}, "--vram belongs to"),
        ({"vram": 2**20, "arrangement": "direct"}, "--vram belongs to"),
        ({"stage": 2, "device": "cpu"}, "and --device is cpu: leave --stage out"),
        ({"stage": 3, "arrangement": "staged"}, "--arrangement is staged"),
        ({"stage": 4}, "--stage is 4; allowed: 1, 2, 3"),
        ({"link": 10**6}, "--link belongs to --arrangement emulated"),
        ({"link": 10**6, "arrangement": "direct"}, "--link belongs to --arrangement emulated"),
        ({"connect": "/tmp/door", "ram": 2**20}, "--ram sizes the arena"),
        ({"timeout": 0.0}, "timeout"),
    ],
)
def test_a_wrong_setting_is_answered_with_a_sentence(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        RunConfig(**settings)  # type: ignore[arg-type]


def test_the_gate_looks_one_layer_ahead_unless_told_otherwise() -> None:
    assert RunConfig().layers_ahead == 1
    assert RunConfig(lookahead=0).layers_ahead == 0
    assert RunConfig(lookahead=2).layers_ahead == 2


def test_no_predictor_means_no_lookahead() -> None:
    assert RunConfig(predictor="none").layers_ahead == 0


def test_a_policy_of_the_users_own_is_not_imported_by_the_supervisor() -> None:
    assert RunConfig(policy="no/such/file.py:Policy").policy == "no/such/file.py:Policy"


def test_a_setting_without_effect_is_said_to_have_none() -> None:
    config = RunConfig(temperature=0, top_p=0.9, bits="none", group=64)
    assert config.ignored() == [
        "--top-p has no effect at --temperature 0",
        "--group has no effect with --bits none",
    ]


def test_settings_that_all_apply_are_not_commented_on() -> None:
    assert RunConfig(temperature=0.7, top_p=0.9, seed=1, bits="4", group=64, fast=True).ignored() == []
