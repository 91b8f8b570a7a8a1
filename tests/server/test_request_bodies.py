"""What clients send is read strictly: each slip has its sentence and names its field."""

import json
from typing import Any

import pytest

from launch.server.bodies import chat_request, completion_request, parse
from launch.server.refusals import Refusal

HELLO = [{"role": "user", "content": "hello"}]


def refused(read: Any, body: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read(body)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"prompt": }', b"\xff\xfe", b"[" * 100_000, b'"text"', b"[]", b"null", b"1e999"]
)
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    assert "JSON" in refused(parse, data).text


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("n", 2, "n is not supported"),
        ("best_of", 3, "best_of is not supported"),
        ("echo", True, "echo is not supported"),
        ("suffix", "end", "suffix is not supported"),
        ("logit_bias", {"5": 1}, "logit_bias is not supported"),
        ("presence_penalty", 0.5, "presence_penalty is not supported"),
        ("no_such_thing", 1, "'no_such_thing' is not known"),
        ("max_tokens", 0, "of at least 1"),
        ("max_tokens", 1.5, "whole number"),
        ("max_tokens", True, "whole number"),
        ("temperature", -1, "0 (greedy) or more"),
        ("temperature", "hot", "number"),
        ("temperature", 10**400, "number"),
        ("temperature", float("nan"), "number"),
        ("temperature", float("inf"), "number"),
        ("top_p", 0, "above 0 and at most 1"),
        ("top_p", 1.1, "above 0 and at most 1"),
        ("top_k", -1, "of at least 0"),
        ("seed", "one", "whole number"),
        ("seed", 2**63, "whole number"),
        ("stop", "", "none of them empty"),
        ("stop", ["a", ""], "none of them empty"),
        ("stop", ["x"] * 17, "at most 16"),
        ("stop", {"a": 1}, "a string or a list"),
        ("stream", "yes", "true or false"),
        ("logprobs", 21, "from 0 to 20"),
        ("stream_options", {"include_usage": True}, 'without "stream": true'),
        ("model", 5, "must be a string"),
        ("prompt", None, "a string or a list of token ids"),
        ("prompt", 7, "a string or a list of token ids"),
        ("prompt", ["a", "b"], "holds 2 prompts"),
        ("prompt", [1, "a"], "mixes token ids"),
        ("prompt", [], "a string or a list of token ids"),
        ("prompt", "\ud800", "no valid text"),
    ],
)
def test_a_completion_with_a_wrong_field_is_refused_with_its_name(
    field: str, value: object, words: str
) -> None:
    refusal = refused(completion_request, {"prompt": "Once", field: value})
    assert refusal.param == field
    assert words in refusal.text


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"messages": None}, "messages", "at least one"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": ["hello"]}, "messages", "messages[0] must be an object"),
        ({"messages": [{"role": "tool", "content": "5"}]}, "messages", "role 'tool'"),
        ({"messages": [{"role": "user"}]}, "messages", "messages[0] has no text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages",
            "part of type 'image_url'",
        ),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}, "messages", "tool calls"),
        ({"tools": [{"type": "function"}]}, "tools", "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "response_format is not supported"),
        ({"top_logprobs": 3}, "top_logprobs", "without logprobs"),
        ({"logprobs": 3}, "logprobs", "true or false"),
        ({"max_completion_tokens": -1}, "max_completion_tokens", "of at least 1"),
        ({"stream": True, "stream_options": {"usage": 1}}, "stream_options", "must be an object such as"),
    ],
)
def test_a_chat_with_a_wrong_field_is_refused_with_its_name(
    change: dict[str, object], param: str, words: str
) -> None:
    refusal = refused(chat_request, {"messages": HELLO, **change})
    assert refusal.param == param
    assert words in refusal.text


def test_harmless_and_filing_fields_are_accepted() -> None:
    asked = completion_request(
        {"prompt": "Once", "n": 1, "presence_penalty": 0, "user": "me", "logit_bias": None, "echo": False}
    )
    assert asked.ask.prompt == "Once"


def test_what_is_not_said_is_none() -> None:
    ask = chat_request({"messages": HELLO}).ask
    assert (ask.max_tokens, ask.temperature, ask.top_p, ask.seed, ask.top_logprobs) == (None,) * 5
    assert ask.stop == []


def test_a_completion_that_says_nothing_gets_sixteen_tokens() -> None:
    assert completion_request({"prompt": "Once"}).ask.max_tokens == 16


def test_max_completion_tokens_goes_before_max_tokens() -> None:
    asked = chat_request({"messages": HELLO, "max_tokens": 5, "max_completion_tokens": 7})
    assert asked.ask.max_tokens == 7


def test_text_parts_are_joined_and_a_developer_is_the_system() -> None:
    parts = [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]
    asked = chat_request({"messages": [{"role": "developer", "content": parts}]})
    assert asked.ask.messages == [{"role": "system", "content": "be brief"}]


@pytest.mark.parametrize("prompt", [[5, 6], [[5, 6]]])
def test_token_ids_are_a_prompt(prompt: object) -> None:
    assert completion_request({"prompt": prompt}).ask.prompt == [5, 6]


def test_one_stop_string_is_a_list_of_one() -> None:
    assert completion_request({"prompt": "Once", "stop": "end"}).ask.stop == ["end"]


def test_usage_is_included_when_a_stream_asks_for_it() -> None:
    body = {"prompt": "Once", "stream": True, "stream_options": {"include_usage": True}}
    assert completion_request(body).includes_usage
    assert not completion_request({"prompt": "Once", "stream": True}).includes_usage


def test_a_refusal_has_openai_s_shape() -> None:
    body = Refusal(404, "not here", param="model", code="model_not_found").body
    assert json.loads(json.dumps(body)) == {
        "error": {
            "message": "not here",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }
