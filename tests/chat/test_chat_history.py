"""What of a conversation the context holds, and how it reads without a template."""

import pytest

from launch.chat.history import History, Message, fit, plain_text


def _words(messages: list[Message]) -> int:
    return sum(len(message["content"].split()) for message in messages)


def _talk(*contents: str, system: str | None = None) -> list[Message]:
    history = History(system)
    for number, content in enumerate(contents):
        if number % 2:
            history.answer(content, 0)
        else:
            history.ask(content)
    return history.messages


def test_what_fits_is_kept_whole() -> None:
    messages = _talk("a b", "c d", "e")
    fitted = fit(messages, _words, 15, 10)
    assert fitted.messages == messages
    assert (fitted.num_forgotten, fitted.prompt_tokens, fitted.max_new_tokens) == (0, 5, 10)


def test_the_oldest_question_and_answer_go_together_and_the_system_stays() -> None:
    messages = _talk("a b", "c d", "e f", "g h", "i", system="s")
    fitted = fit(messages, _words, 8, 4)
    assert [m["content"] for m in fitted.messages] == ["s", "i"]
    assert fitted.num_forgotten == 4


def test_no_more_is_forgotten_than_must_be() -> None:
    fitted = fit(_talk("a b", "c d", "e f", "g h", "i"), _words, 9, 4)
    assert fitted.num_forgotten == 2
    assert fitted.prompt_tokens == 5


def test_a_long_question_makes_the_answer_shorter() -> None:
    assert fit(_talk("a b c d"), _words, 6, 100).max_new_tokens == 2


def test_a_question_as_long_as_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="a prompt of 6 tokens, but the model's context holds 6"):
        fit(_talk("a b c d e f"), _words, 6, 1)


def test_a_model_without_a_limit_forgets_nothing() -> None:
    assert fit(_talk("a " * 1000), _words, None, 10).max_new_tokens == 10


def test_forgetting_and_taking_back_leave_the_rest() -> None:
    history = History("s")
    history.ask("one")
    history.answer("two", 0)
    history.ask("three")
    history.answer("four", 2)
    history.ask("five")
    history.take_back()
    assert [m["content"] for m in history.messages] == ["s", "three", "four"]
    history.reset()
    assert [m["content"] for m in history.messages] == ["s"]


def test_without_a_template_an_answer_continues_its_question() -> None:
    assert plain_text(_talk("There was", " a king", "Then", " he slept")) == "There was a king\nThen he slept"
