"""What clients send, read strictly: OpenAI's request bodies become Asks, or a Refusal with a sentence.

Pure. What would change the answer and is not supported is refused, never passed over; what only
names or files a request is accepted.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from launch.server.messages import Ask
from launch.server.refusals import Refusal

Body = Mapping[str, object]

MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
#: What OpenAI's older endpoint gives when nobody says how much.
COMPLETION_TOKENS = 16

#: Fields that say nothing about the answer.
_FILING = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
#: Fields with one harmless meaning, which many clients send; any other value would have to be obeyed.
_HARMLESS: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
_ROLES = ("system", "developer", "user", "assistant")
_SHARED = frozenset(
    {
        *("model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "top_k"),
        *("repetition_penalty", "seed", "stop", "logprobs"),
    }
)
_OF_CHAT = _SHARED | {"messages", "max_completion_tokens", "top_logprobs"}
_OF_COMPLETIONS = _SHARED | {"prompt"}


@dataclass(frozen=True, slots=True)
class Request:
    """What to answer, and how: `model` "" is whichever is served. The Ask has no number yet."""

    ask: Ask
    model: str
    is_streamed: bool
    includes_usage: bool


def parse(data: bytes) -> Body:
    """The JSON object in a request's body."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise Refusal(400, f"the request's body is not JSON: {reason}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise Refusal(400, 'the request\'s body must be a JSON object, such as {"prompt": "Once"}')
    return body


def chat_request(body: Body) -> Request:
    """The body of /v1/chat/completions."""
    _check_fields(body, _OF_CHAT)
    max_tokens = _whole(body, "max_completion_tokens", 1, None)
    wants_scores = _flag(body, "logprobs")
    top = _whole(body, "top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top is not None and not wants_scores:
        raise _wrong("top_logprobs", 'top_logprobs has no effect without logprobs: send "logprobs": true too')
    return _request(
        body,
        prompt=None,
        messages=_messages(body),
        max_tokens=_whole(body, "max_tokens", 1, None) if max_tokens is None else max_tokens,
        top_logprobs=(top or 0) if wants_scores else None,
    )


def completion_request(body: Body) -> Request:
    """The body of /v1/completions."""
    _check_fields(body, _OF_COMPLETIONS)
    max_tokens = _whole(body, "max_tokens", 1, None)
    return _request(
        body,
        prompt=_prompt(body),
        messages=None,
        max_tokens=COMPLETION_TOKENS if max_tokens is None else max_tokens,
        top_logprobs=_whole(body, "logprobs", 0, MAX_TOP_LOGPROBS),
    )


def _request(
    body: Body,
    *,
    prompt: str | list[int] | None,
    messages: list[dict[str, str]] | None,
    max_tokens: int | None,
    top_logprobs: int | None,
) -> Request:
    is_streamed = _flag(body, "stream")
    ask = Ask(
        number=0,
        prompt=prompt,
        messages=messages,
        max_tokens=max_tokens,
        temperature=_number(body, "temperature", lambda value: value >= 0, "0 (greedy) or more"),
        top_p=_number(body, "top_p", lambda value: 0 < value <= 1, "above 0 and at most 1"),
        top_k=_whole(body, "top_k", 0, None),
        repetition_penalty=_number(body, "repetition_penalty", lambda value: value > 0, "above 0"),
        seed=_whole(body, "seed", -(2**63), 2**63 - 1),
        stop=_stops(body),
        top_logprobs=top_logprobs,
    )
    return Request(ask, _model(body), is_streamed, _includes_usage(body, is_streamed))


def _check_fields(body: Body, known: frozenset[str]) -> None:
    for name, value in body.items():
        if name in known or name in _FILING or value is None:
            continue
        if name not in _HARMLESS:
            raise _wrong(name, f"the parameter {name!r} is not known here: leave it out")
        if value not in _HARMLESS[name]:
            allowed = " or ".join(map(json.dumps, _HARMLESS[name]))
            raise _wrong(
                name, f"{name} is not supported, beyond {allowed}: leave it out", "unsupported_parameter"
            )


def _model(body: Body) -> str:
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise _wrong("model", "model must be a string: GET /v1/models names the one that is served")
    return model or ""


def _includes_usage(body: Body, is_streamed: bool) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict) or not options.keys() <= {"include_usage", "include_obfuscation"}:
        raise _wrong("stream_options", 'stream_options must be an object such as {"include_usage": true}')
    if not is_streamed:
        raise _wrong("stream_options", 'stream_options has no effect without "stream": true')
    if options.get("include_obfuscation"):
        raise _wrong("stream_options", "include_obfuscation is not supported: leave it out")
    return _flag(options, "include_usage")


def _messages(body: Body) -> list[dict[str, str]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", 'messages must be a list with at least one {"role": ..., "content": ...}')
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: object, name: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise _wrong("messages", f"{name} must be an object with role and content")
    role = message.get("role")
    if role not in _ROLES:
        raise _wrong("messages", f"{name} has the role {role!r}; allowed: {', '.join(_ROLES)}")
    if message.get("tool_calls") or message.get("function_call"):
        raise _wrong("messages", f"{name} holds tool calls, which are not supported", "unsupported_parameter")
    content = _content(message.get("content"), name)
    return {"role": "system" if role == "developer" else role, "content": content}


def _content(content: object, name: str) -> str:
    """A text, or a list of text parts, which are joined."""
    if isinstance(content, str):
        return _utf8(content, "messages")
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        kinds = [part.get("type") for part in content]
        strange = [kind for kind in kinds if kind != "text"]
        if strange:
            raise _wrong("messages", f"{name} has a part of type {strange[0]!r}; only text is supported")
        texts = [part.get("text") for part in content]
        if all(isinstance(text, str) for text in texts):
            return _utf8("".join(map(str, texts)), "messages")
    raise _wrong("messages", f"{name} has no text: content must be a string or a list of text parts")


def _prompt(body: Body) -> str | list[int]:
    """One text, or one list of token ids; a list that holds the one text is taken for it."""
    match body.get("prompt"):
        case str() as text:
            return _utf8(text, "prompt")
        case [str() as text]:
            return _utf8(text, "prompt")
        case [[int(), *_] as token_ids] | ([int(), *_] as token_ids):
            return _token_ids(token_ids)
        case [*prompts] if len(prompts) > 1 and all(isinstance(one, str | list) for one in prompts):
            raise _wrong("prompt", f"prompt holds {len(prompts)} prompts; send one request for each")
    raise _wrong("prompt", "prompt must be a string or a list of token ids")


def _token_ids(values: Sequence[object]) -> list[int]:
    token_ids = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
    if len(token_ids) != len(values):
        raise _wrong("prompt", "prompt mixes token ids with something else: send whole numbers alone")
    return token_ids


def _stops(body: Body) -> list[str]:
    stop = body.get("stop")
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(one, str) and one for one in stops):
        raise _wrong("stop", "stop must be a string or a list of strings, none of them empty")
    if len(stops) > MAX_STOPS:
        raise _wrong("stop", f"stop holds {len(stops)} strings; at most {MAX_STOPS} are allowed")
    return stops


def _flag(body: Body, name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise _wrong(name, f"{name} is {_shown(value)}; it must be true or false")
    return bool(value)


def _whole(body: Body, name: str, low: int, high: int | None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or value < low or (high is not None and value > high):
        bounds = f"from {low} to {high}" if high is not None else f"of at least {low}"
        raise _wrong(name, f"{name} is {_shown(value)}; it must be a whole number {bounds}")
    return value


def _number(body: Body, name: str, is_allowed: Callable[[float], bool], allowed: str) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not _fits(value, is_allowed):
        raise _wrong(name, f"{name} is {_shown(value)}; it must be a number {allowed}")
    return float(value)


def _fits(value: float, is_allowed: Callable[[float], bool]) -> bool:
    try:
        return math.isfinite(value) and is_allowed(value)
    except OverflowError:
        return False  # a whole number that no float holds


def _shown(value: object) -> str:
    """A value as it was sent, or its beginning."""
    return json.dumps(value)[:80]


def _utf8(text: str, name: str) -> str:
    """JSON can spell halves of characters that no text has."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _wrong(name, f"{name} is no valid text: {error}") from None
    return text


def _wrong(param: str, text: str, code: str | None = None) -> Refusal:
    return Refusal(400, text, param=param, code=code)
