"""Text is released token by token, whole characters only, and nothing of a stop string."""

from hypothesis import given
from hypothesis import strategies as st

from launch.server.text_stream import TextStream


def by_bytes(token_ids: list[int]) -> str:
    """A tokenizer of one byte a token."""
    return bytes(token_ids).decode(errors="replace")


def shown(text: str, *stop: str) -> list[str]:
    """What each byte of `text` releases, and the end."""
    stream = TextStream(by_bytes, stop)
    pieces = []
    for token_id in text.encode():
        pieces.append(stream.push(token_id))
        if stream.is_stopped:
            break
    return [*pieces, stream.finish()]


def test_each_token_shows_its_text() -> None:
    assert shown("abc") == ["a", "b", "c", ""]


def test_half_a_character_is_not_shown() -> None:
    assert shown("é!") == ["", "é", "!", ""]


def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    stream = TextStream(by_bytes, [])
    assert stream.push("é".encode()[0]) == ""
    assert stream.finish() == "\ufffd"


def test_the_beginning_of_a_stop_string_is_held_back() -> None:
    assert shown("one sop", "stop") == ["o", "n", "e", " ", "", "so", "p", ""]


def test_what_was_held_back_comes_at_the_end() -> None:
    assert shown("a st", "stop")[-1] == "st"


def test_the_text_ends_before_the_stop_string() -> None:
    assert "".join(shown("go on, stop here", "stop")) == "go on, "


def test_the_first_of_several_stop_strings_counts() -> None:
    assert "".join(shown("abcdef", "ef", "cd")) == "ab"


def test_nothing_comes_after_a_stop_string() -> None:
    stream = TextStream(by_bytes, ["b"])
    assert [stream.push(one) for one in b"ab"] == ["a", ""]
    assert stream.push(ord("c")) == stream.finish() == ""


@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_the_pieces_are_the_text_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    ends = [place + len(one) for one in stop if (place := text.find(one)) >= 0]
    cut = text
    if ends:
        seen = text[: min(ends)]
        cut = seen[: min(seen.find(one) for one in stop if one in seen)]
    assert "".join(shown(text, *stop)) == cut
