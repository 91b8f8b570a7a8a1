"""`sidestage chat` with real processes: on a terminal, and as a filter for scripts.

Each program costs seconds of imports, so one conversation serves several tests.
"""

import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.cli import SIDESTAGE, Answer, call
from support.terminal import CTRL_C, on_terminal

#: Two programs, each of which imports torch twice.
pytestmark = pytest.mark.timeout(300)
#: Few slots behind a slow link: an answer of a minute, unless it is stopped.
SLOW = ("--arrangement", "emulated", "--slots", "8", "--link", "4MB/s", "--max-new-tokens", "400")
TEMPLATE = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}<assistant>"


@dataclass(frozen=True, slots=True)
class Evening:
    """What a conversation on a terminal showed, piece by piece."""

    greeting: str
    stopped: str
    at_prompt: str
    after_death: str
    code: int
    num_left: int


@pytest.fixture(scope="module")
def evening(store_4bit: Path) -> Evening:
    """One answer is stopped, one line thrown away, the loader dies, SIGTERM comes at the prompt."""
    with on_terminal("chat", store_4bit, *SLOW, "--threads", "1", "--seed", "1") as chat:
        greeting = chat.wait_for("> ")
        children = psutil.Process(chat.process.pid).children()
        chat.press("Once upon a time there was a king who\n")
        chat.wait_for("king who\n")
        chat.wait_for(" ")
        chat.press(CTRL_C)
        stopped = chat.wait_for("stopped\n") + chat.wait_for("> ")
        chat.press("never mind" + CTRL_C)
        at_prompt = chat.wait_for("leaves\n") + chat.wait_for("> ")
        next(child for child in children if "serve" in child.cmdline()).kill()
        chat.press("Then came a wolf and\n")
        chat.wait_for("wolf and\n")
        after_death = chat.wait_for("another on the same arena\n")
        chat.press(CTRL_C)
        after_death += chat.wait_for("stopped\n") + chat.wait_for("> ")
        chat.process.send_signal(signal.SIGTERM)
        code = chat.end()
        left = psutil.wait_procs(children, timeout=5)[1]
    return Evening(greeting, stopped, at_prompt, after_death, code, len(left))


def test_a_terminal_is_greeted_with_what_was_chosen_and_how_to_leave(evening: Evening) -> None:
    assert "8 in slots" in evening.greeting
    assert "no chat template" in evening.greeting
    assert "/exit or Ctrl-D leaves" in evening.greeting


def test_ctrl_c_stops_the_answer_and_not_the_program(evening: Evening) -> None:
    num_tokens = int(
        evening.stopped.splitlines()[-1 if "tok" in evening.stopped.splitlines()[-1] else -2].split(" tok")[0]
    )
    assert 0 < num_tokens < 400


def test_an_answer_is_followed_by_speed_and_hit_rate(evening: Evening) -> None:
    assert "tok/s" in evening.stopped
    assert "% hit" in evening.stopped


def test_ctrl_c_at_the_prompt_throws_the_line_away(evening: Evening) -> None:
    assert "tok" not in evening.at_prompt


def test_a_loader_that_dies_between_two_questions_is_replaced(evening: Evening) -> None:
    assert "% hit" in evening.after_death


def test_sigterm_at_the_prompt_leaves_nobody(evening: Evening) -> None:
    assert evening.code == 130
    assert evening.num_left == 0


@dataclass(frozen=True, slots=True)
class Script:
    """A conversation through pipes: its words, and the JSON object that it left."""

    answer: Answer
    told: dict[str, Any]

    @property
    def texts(self) -> list[str]:
        return [answer["text"] for answer in self.told["answers"]]


@pytest.fixture(scope="module")
def script(store_4bit: Path, tmp_path_factory: pytest.TempPathFactory) -> Script:
    """Greedy, with a template: a question, another, /reset, the first again, too long ones, /exit."""
    folder = tmp_path_factory.mktemp("chat")
    store = Path(shutil.copytree(store_4bit, folder / "store"))
    (store / "chat_template.jinja").write_text(TEMPLATE)
    long = "the wolf and the king and " * 40
    lines = [
        "Who is there?",
        "And who else?",
        "/reset",
        "Who is there?",
        long,
        long,
        "king " * 600,
        "/exit",
        "no",
    ]
    options = ["--temperature", "0", "--threads", "1", "--slots", "48", "--max-new-tokens", "20"]
    ended = subprocess.run(
        [
            *SIDESTAGE,
            "chat",
            str(store),
            *options,
            "--system",
            "Be brief.",
            "--json",
            str(folder / "chat.json"),
        ],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    answer = Answer(ended.returncode, ended.stdout, ended.stderr)
    assert answer.code == 0, answer.err
    return Script(answer, Answer(0, (folder / "chat.json").read_text(), "").json)


def test_stdout_carries_the_answers_alone(script: Script) -> None:
    assert script.answer.out == "".join(f"{text}\n" for text in script.texts)
    assert script.answer.err.count("% hit") == len(script.texts) == 5


def test_the_template_makes_the_prompt_of_all_that_was_said(script: Script) -> None:
    assert script.told["has_template"] is True
    tokens = [answer["prompt_tokens"] for answer in script.told["answers"]]
    assert tokens[1] > tokens[0] + script.told["answers"][0]["new_tokens"]


def test_what_the_model_has_read_is_not_read_again_until_a_reset(script: Script) -> None:
    first, second, anew = script.told["answers"][:3]
    assert second["recalled_tokens"] >= first["prompt_tokens"]
    assert anew["recalled_tokens"] == first["recalled_tokens"] == 0


def test_after_a_reset_the_same_question_has_the_same_answer(script: Script) -> None:
    assert script.texts[2] == script.texts[0]
    assert script.told["answers"][2]["prompt_tokens"] == script.told["answers"][0]["prompt_tokens"]


def test_a_full_context_forgets_the_oldest_messages_and_says_so(script: Script) -> None:
    forgotten = [answer["num_forgotten"] for answer in script.told["answers"]]
    assert forgotten[:3] == [0, 0, 0]
    assert max(forgotten) >= 2
    assert "the context is full" in script.answer.err


def test_a_question_that_is_too_long_is_refused_and_the_conversation_goes_on(script: Script) -> None:
    assert script.answer.err.count("write a shorter one") == 1


def test_the_total_is_the_sum_of_the_answers(script: Script) -> None:
    for name in ("lookups", "hits", "late", "misses"):
        assert script.told[name] == sum(answer[name] for answer in script.told["answers"])


def test_an_empty_system_prompt_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    answer = call(capsys, "chat", "--system", " ")
    assert (answer.code, "--system is empty" in answer.err) == (1, True)
