"""The codec: golden bytes, strict decoding, and nothing but ProtocolError for whatever comes in."""

import dataclasses
from typing import Any, Literal, get_args, get_origin

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.golden_messages import GOLDEN

from protocol.codec import MAX_MESSAGE_BYTES, decode, encode
from protocol.errors import ProtocolError
from protocol.messages import PROTOCOL_VERSION, Message, Request

KINDS = [type(message) for message, _ in GOLDEN]


def strategy_for(annotation: Any) -> st.SearchStrategy[Any]:
    if annotation is Request:
        return st.builds(Request, INTS, INTS, INTS)
    if get_origin(annotation) is tuple:
        return st.lists(strategy_for(get_args(annotation)[0]), max_size=5).map(tuple)
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    return {int: INTS, str: st.text(max_size=20), bytes: st.binary(max_size=20)}[annotation]


INTS = st.integers(-(2**63), 2**64 - 1)
MESSAGES = st.one_of(
    *(
        st.builds(kind, **{field.name: strategy_for(field.type) for field in dataclasses.fields(kind)})
        for kind in KINDS
    )
)


@pytest.mark.parametrize(("message", "golden"), GOLDEN, ids=[kind.__name__ for kind in KINDS])
def test_bytes_of_every_message_stay_as_they_are_within_a_version(message: Message, golden: str) -> None:
    assert PROTOCOL_VERSION == 1, "a new version has new golden bytes"
    assert encode(message).hex() == golden
    assert decode(bytes.fromhex(golden)) == message


def test_every_message_has_golden_bytes() -> None:
    assert set(KINDS) == set(get_args(Message))


@given(MESSAGES)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    assert decode(encode(message)) == message


@given(st.binary(max_size=200))
@settings(max_examples=500)
def test_random_bytes_are_refused_with_a_sentence(data: bytes) -> None:
    try:
        decode(data)
    except ProtocolError as error:
        assert str(error)


@given(MESSAGES, st.data())
@settings(max_examples=300)
def test_damaged_messages_decode_or_are_refused(message: Message, data: st.DataObject) -> None:
    good = bytearray(encode(message))
    index = data.draw(st.integers(0, len(good) - 1))
    good[index] = data.draw(st.integers(0, 255))
    bad = bytes(good[: data.draw(st.integers(0, len(good)))])
    for damaged in (bad, bytes(good), bytes(good) + b"\x00"):
        try:
            decode(damaged)
        except ProtocolError as error:
            assert str(error)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        ([], "starts with a tag"),
        (7, "starts with a tag"),
        ([True], "starts with a tag"),
        ([99], "unknown message tag 99"),
        ([20], "Ready has 1 fields, 0 were sent"),
        ([20, 1, 2], "Ready has 1 fields, 2 were sent"),
        ([20, "1"], "Ready.epoch: expected int, got str"),
        ([20, True], "Ready.epoch: expected int, got bool"),
        ([12, 5], "Release.tickets: expected an array"),
        ([12, [1.5]], "Release.tickets: expected int, got float"),
        ([11, [[1, 2]], [], [], [], [], []], "Fetch.demand: expected [ticket, key, deadline]"),
        ([1, 1, 1, "", "carrier pigeon", -1], "Knock.completions: expected one of word, message"),
        ([1, 1, 1, "", ["word"], -1], "Knock.completions: expected one of word, message"),
    ],
)
def test_decoding_says_which_field_is_wrong(array: object, said: str) -> None:
    with pytest.raises(ProtocolError) as refused:
        decode(msgpack.packb(array))
    assert said in str(refused.value)


def test_an_array_longer_than_its_bytes_is_refused_without_allocating_it() -> None:
    with pytest.raises(ProtocolError):
        decode(bytes.fromhex("920cddffffffff"))


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ProtocolError):
        decode(b"\x91" * 100_000)


def test_oversized_messages_are_refused_before_they_are_parsed() -> None:
    with pytest.raises(ProtocolError, match="at most"):
        decode(bytes(MAX_MESSAGE_BYTES + 1))
