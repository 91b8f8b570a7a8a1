"""Answers that share a `generate`: each row keeps its own settings, its own seed and its own end."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.serving import PROMPT

from compute import Offloaded, offload
from launch.sampling import GREEDY
from launch.server.batch import Batch
from launch.server.messages import Ask, Began, Ended, Event, Piece
from launch.server.prompts import PromptReader
from launch.server.refusals import Refusal
from launch.server.row import Row

SHORT, LONG = "A wolf", "In the beginning of the long winter the old woman went out to the well and saw"


@pytest.fixture(scope="module")
def offloaded(store_4bit: Path) -> Iterator[Offloaded]:
    """In float32, in which the low-order bits that a batch changes change no token here."""
    with offload(store_4bit, slots=48, dtype="float32", threads=1) as opened:
        yield opened


class Answers:
    """What the rows of one batch told, by the prompt's place."""

    def __init__(self, offloaded: Offloaded, *asks: Ask) -> None:
        tokenizer = offloaded.tokenizer
        assert tokenizer is not None
        self.events: list[Event] = []
        own = offloaded.model.generation_config
        reader = PromptReader(offloaded.model, tokenizer)
        prompts = [reader.read(ask) for ask in asks]
        self.rows = [
            Row(prompt, tokenizer, own, frozenset({0}), offloaded.model.device, self._hear)
            for prompt in prompts
        ]
        self.cancel_after: dict[int, int] = {}
        self._model = offloaded.model

    def run(self) -> "Answers":
        Batch(self.rows, pad_id=1).run(self._model)
        return self

    def _hear(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Piece) and self.cancel_after.get(event.number) == self.num_pieces(event.number):
            self.rows[event.number].prompt.is_cancelled = True

    def num_pieces(self, number: int) -> int:
        return sum(isinstance(event, Piece) and event.number == number for event in self.events)

    def end(self, number: int) -> Ended:
        """The one end of this row."""
        (end,) = (event for event in self.events if isinstance(event, Ended) and event.number == number)
        return end

    def text(self, number: int) -> str:
        pieces = [event.text for event in self.events if isinstance(event, Piece) and event.number == number]
        return "".join(pieces) + self.end(number).text


def ask(number: int, prompt: str = PROMPT, **said: Any) -> Ask:
    """Twelve greedy tokens, unless said otherwise."""
    silent: dict[str, Any] = dict.fromkeys(
        ("messages", "top_p", "top_k", "repetition_penalty", "seed", "top_logprobs")
    )
    return Ask(
        number=number,
        prompt=prompt,
        **{**silent, "max_tokens": 12, "temperature": 0.0, "stop": [], **said},
    )


def alone(offloaded: Offloaded, prompt: str, **said: Any) -> str:
    return Answers(offloaded, ask(0, prompt, **said)).run().text(0)


def generated(offloaded: Offloaded, **keywords: Any) -> str:
    """What transformers' own `generate` continues PROMPT with."""
    tokenizer = offloaded.tokenizer
    assert tokenizer is not None
    inputs = tokenizer(PROMPT, return_tensors="pt")
    output = offloaded.model.generate(**inputs, max_new_tokens=12, num_beams=1, **keywords)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def test_greedy_is_transformers_greedy_search(offloaded: Offloaded) -> None:
    assert alone(offloaded, PROMPT) == generated(offloaded, **GREEDY)


@pytest.mark.parametrize(
    "said", [{}, {"temperature": 1.1}, {"top_p": 0.5}, {"repetition_penalty": 1.5}, {"top_k": 3}]
)
def test_a_seed_draws_what_transformers_draws_after_it(offloaded: Offloaded, said: dict[str, Any]) -> None:
    samples = {"do_sample": True} if said.keys() - {"repetition_penalty"} else {}
    torch.manual_seed(7)
    expected = generated(offloaded, **said, **samples)
    assert alone(offloaded, PROMPT, seed=7, **{"temperature": None, **said}) == expected


def test_rows_of_different_lengths_answer_as_they_do_alone(offloaded: Offloaded) -> None:
    prompts = (SHORT, LONG, PROMPT)
    answers = Answers(offloaded, *(ask(n, prompt) for n, prompt in enumerate(prompts))).run()
    for number, prompt in enumerate(prompts):
        assert answers.text(number) == alone(offloaded, prompt)


def test_each_row_has_its_own_settings_seed_and_end(offloaded: Offloaded) -> None:
    sampled = {"temperature": 0.9, "seed": 3}
    stop = alone(offloaded, LONG).split()[1]
    answers = Answers(
        offloaded, ask(0, SHORT, **sampled), ask(1, LONG, stop=[stop]), ask(2, PROMPT, max_tokens=3)
    ).run()
    assert answers.text(0) == alone(offloaded, SHORT, **sampled)
    assert answers.text(1) == alone(offloaded, LONG).partition(stop)[0]
    assert [answers.end(n).reason for n in range(3)] == ["length", "stop", "length"]
    assert (answers.end(0).new_tokens, answers.end(2).new_tokens) == (12, 3)


def test_a_row_that_has_ended_is_told_at_once(offloaded: Offloaded) -> None:
    answers = Answers(offloaded, ask(0, max_tokens=2), ask(1)).run()
    after = answers.events[answers.events.index(answers.end(0)) :]
    assert sum(isinstance(event, Piece) for event in after) == 11


def test_a_cancelled_row_ends_with_its_token_and_the_other_goes_on(offloaded: Offloaded) -> None:
    answers = Answers(offloaded, ask(0), ask(1))
    answers.cancel_after = {0: 4}
    answers.run()
    assert (answers.end(0).reason, answers.end(0).new_tokens) == ("cancelled", 4)
    assert (answers.end(1).reason, answers.end(1).new_tokens) == ("length", 12)


def test_every_row_is_told_that_its_turn_has_come_before_anything_else(offloaded: Offloaded) -> None:
    answers = Answers(offloaded, ask(0, max_tokens=1), ask(1, max_tokens=1)).run()
    assert [type(event) for event in answers.events[:2]] == [Began, Began]
    assert isinstance(answers.events[0], Began)
    assert answers.events[0].prompt_tokens == 11


def test_log_probabilities_are_the_model_s_own_whatever_the_temperature(offloaded: Offloaded) -> None:
    cool = Answers(offloaded, ask(0, max_tokens=1, top_logprobs=3)).run()
    hot = Answers(offloaded, ask(0, max_tokens=1, top_logprobs=3, temperature=2.0, seed=1)).run()
    told = [next(event for event in one.events if isinstance(event, Piece)).scores for one in (cool, hot)]
    assert told[0] is not None
    assert told[1] is not None
    assert told[0][1:] == told[1][1:]
    assert len(told[0]) == 4


# --- prompts -----------------------------------------------------------------------------------

TEMPLATE = (
    "{% if messages[0].role != 'user' %}{{ raise_exception('a user speaks first') }}{% endif %}"
    "{% for message in messages %}[{{ message.content }}]{% endfor %}"
    "{% if add_generation_prompt %}:{% endif %}"
)


def chat(*messages: tuple[str, str]) -> Ask:
    said = [{"role": role, "content": content} for role, content in messages]
    return replace(ask(0, max_tokens=None), prompt=None, messages=said)


@pytest.fixture
def reader(offloaded: Offloaded) -> PromptReader:
    """Reads for a model with a chat template."""
    tokenizer = deepcopy(offloaded.tokenizer)
    assert tokenizer is not None
    tokenizer.chat_template = TEMPLATE
    return PromptReader(offloaded.model, tokenizer)


def test_messages_go_through_the_model_s_template(offloaded: Offloaded, reader: PromptReader) -> None:
    tokenizer = offloaded.tokenizer
    assert tokenizer is not None
    prompt = reader.read(chat(("user", "a wolf"), ("assistant", "a hen"), ("user", "and then")))
    assert tokenizer.decode(prompt.token_ids) == "[a wolf][a hen][and then]:"


def test_messages_that_the_template_does_not_take_are_refused_with_its_words(reader: PromptReader) -> None:
    with pytest.raises(Refusal, match="a user speaks first") as caught:
        reader.read(chat(("assistant", "a hen")))
    assert caught.value.status == 400


def test_without_a_template_the_messages_are_their_text(offloaded: Offloaded) -> None:
    tokenizer = offloaded.tokenizer
    assert tokenizer is not None
    prompt = PromptReader(offloaded.model, tokenizer).read(chat(("user", PROMPT)))
    assert prompt.token_ids == tokenizer(PROMPT)["input_ids"]


def test_an_answer_that_nobody_bounds_ends_where_the_model_or_its_context_does(
    offloaded: Offloaded, reader: PromptReader
) -> None:
    assert offloaded.model.generation_config.max_new_tokens == 200
    assert reader.read(chat(("user", "a"))).max_tokens == 200
    long = reader.read(chat(("user", "a" * 400)))
    assert long.max_tokens == min(200, 512 - len(long.token_ids))
