"""How the command line's words reach `generate`."""

from dataclasses import replace

import pytest

from launch.job import Job
from launch.sampling import check_length, generation_keywords

JOB = Job(
    store="",
    endpoint="",
    prompt="",
    max_new_tokens=20,
    temperature=None,
    top_p=None,
    repetition_penalty=None,
    seed=0,
    device="auto",
    dtype="auto",
    threads=None,
    bits=None,
    group=None,
    fast=False,
    arrangement="direct",
    slots=None,
    vram=None,
    stage=1,
    policy="lru",
    predictor="gate",
    lookahead=1,
    link=None,
    timeout=None,
    streams=True,
    timeline=None,
)


def test_without_a_word_the_models_own_settings_stay() -> None:
    assert generation_keywords(JOB) == {"max_new_tokens": 20, "num_beams": 1}


def test_temperature_zero_is_greedy_and_switches_penalties_off() -> None:
    keywords = generation_keywords(replace(JOB, temperature=0.0, top_p=0.5))
    assert keywords["do_sample"] is False
    assert keywords["repetition_penalty"] == 1.0
    assert keywords["top_p"] == 1.0


def test_a_penalty_that_was_asked_for_stays_under_greedy() -> None:
    assert (
        generation_keywords(replace(JOB, temperature=0.0, repetition_penalty=1.2))["repetition_penalty"]
        == 1.2
    )


def test_a_temperature_or_a_nucleus_asks_for_sampling() -> None:
    assert generation_keywords(replace(JOB, temperature=0.3))["do_sample"] is True
    assert generation_keywords(replace(JOB, top_p=0.3))["top_p"] == 0.3


def test_a_job_survives_its_way_through_json() -> None:
    job = replace(JOB, prompt='"\n\u20ac', link=3, temperature=0.5)
    assert Job.from_json(job.to_json()) == job


def test_what_fits_the_context_exactly_is_let_through() -> None:
    check_length(312, 200, 512)
    check_length(10**6, 200, None)


def test_one_token_too_many_is_refused_naming_every_number() -> None:
    with pytest.raises(ValueError, match=r"313 tokens .* 200, .* 512"):
        check_length(313, 200, 512)


def test_a_prompt_without_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        check_length(0, 200, 512)
