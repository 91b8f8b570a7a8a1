"""Messages to bytes and back: a msgpack array `[tag, *fields]`.

Decoding is strict: a wrong tag, count, type or range is a ProtocolError that says which
field; nothing is allocated for a length that the input does not hold.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

import msgpack

from protocol.errors import ProtocolError
from protocol.messages import (
    Dropped,
    Fault,
    Fetch,
    Goodbye,
    Hello,
    Knock,
    Message,
    Ready,
    Refused,
    Release,
    Report,
    Reported,
    Request,
    Shutdown,
    Snapshot,
    Staged,
    Stats,
    Stopped,
    Welcome,
)

MAX_MESSAGE_BYTES = 16 * 2**20

_TAGS: dict[int, type[Message]] = {
    1: Knock,
    2: Welcome,
    3: Refused,
    10: Hello,
    11: Fetch,
    12: Release,
    13: Snapshot,
    14: Goodbye,
    15: Shutdown,
    16: Report,
    20: Ready,
    21: Staged,
    22: Dropped,
    23: Stats,
    24: Fault,
    25: Stopped,
    26: Reported,
}
_TAG_OF = {kind: tag for tag, kind in _TAGS.items()}

Check = Callable[[Any], Any]


def encode(message: Message) -> bytes:
    """The bytes of one message."""
    kind = type(message)
    values = [_plain(getattr(message, name)) for name in _FIELD_NAMES[kind]]
    packed: bytes = msgpack.packb([_TAG_OF[kind], *values])
    return packed


def decode(data: bytes | memoryview) -> Message:
    """The message in `data`. Raises ProtocolError for anything that is not exactly one message."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"message of {len(data)} bytes; at most {MAX_MESSAGE_BYTES} are allowed")
    try:
        array = msgpack.unpackb(data, use_list=True, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ProtocolError(f"not a message: {error}") from error
    if not isinstance(array, list) or not array or type(array[0]) is not int:
        raise ProtocolError("not a message: expected an array that starts with a tag")
    kind = _TAGS.get(array[0])
    if kind is None:
        raise ProtocolError(f"unknown message tag {array[0]}; the peer may be of another version")
    return _build(kind, array[1:])


def _build(kind: type[Message], values: list[Any]) -> Message:
    checks = _CHECKS[kind]
    names = _FIELD_NAMES[kind]
    if len(values) != len(checks):
        raise ProtocolError(f"{kind.__name__} has {len(checks)} fields, {len(values)} were sent")
    decoded = []
    for name, check, value in zip(names, checks, values, strict=True):
        try:
            decoded.append(check(value))
        except TypeError as error:
            raise ProtocolError(f"{kind.__name__}.{name}: {error}") from error
    return kind(*decoded)


def _plain(value: Any) -> Any:
    if type(value) is tuple:
        return [_plain(item) for item in value]
    if type(value) is Request:
        return (value.ticket, value.key, value.deadline)
    return value


def _exactly(kind: type) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
        return value

    return check


def _one_of(choices: tuple[str, ...]) -> Check:
    def check(value: Any) -> Any:
        if value not in choices:
            raise TypeError(f"expected one of {', '.join(choices)}")
        return value

    return check


def _tuple_of(item: Check) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not list:
            raise TypeError(f"expected an array, got {type(value).__name__}")
        return tuple(map(item, value))

    return check


def _request(value: Any) -> Request:
    if type(value) is not list or len(value) != 3 or any(type(v) is not int for v in value):
        raise TypeError("expected [ticket, key, deadline]")
    return Request(*value)


def _check_for(annotation: Any) -> Check:
    if annotation is Request:
        return _request
    if get_origin(annotation) is tuple:
        return _tuple_of(_check_for(get_args(annotation)[0]))
    if get_origin(annotation) is Literal:
        return _one_of(get_args(annotation))
    assert annotation in (int, str, bytes), annotation
    return _exactly(annotation)


_FIELD_NAMES: dict[type[Any], tuple[str, ...]] = {
    kind: tuple(field.name for field in fields(kind)) for kind in _TAG_OF
}
_CHECKS: dict[type[Any], tuple[Check, ...]] = {
    kind: tuple(_check_for(field.type) for field in fields(kind)) for kind in _TAG_OF
}
