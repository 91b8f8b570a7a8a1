"""`sidestage chat`: asks the user, asks the model, and tells after each answer what the experts did."""

import json
import os
import sys
from typing import Any

from launch.chat.config import ChatConfig
from launch.chat.history import History
from launch.chat.partner import Partner
from launch.chat.terminal import Terminal
from launch.log import log_to_stderr
from launch.output import write_json
from launch.plan import plan_run
from launch.summary import status_line

Result = dict[str, Any]

HELP = (
    "/reset forgets the conversation, /exit or Ctrl-D leaves, /help says this;",
    "Ctrl-C stops an answer, and a second one before it has stopped ends the program.",
)


def chat(config: ChatConfig) -> int:
    """Converse until the user leaves; the exit status. Raises SidestageError or ValueError."""
    log_to_stderr()
    terminal = Terminal(config.run.is_quiet)
    plan = plan_run(config.run, "")
    for line in (plan.headline, *plan.notices, *config.run.ignored()):
        terminal.note(line)
    with Partner(plan, config.run.timeout) as partner:
        facts = partner.get_ready()
        _greet(terminal, facts)
        conversation = Conversation(partner, terminal, History(config.system))
        try:
            conversation.run()
        except BrokenPipeError:
            _forget_stdout()
        if config.run.json is not None:
            total = {"answers": conversation.answers, **facts, **partner.total()}
            write_json(config.run.json, json.dumps(total))
    return 0


class Conversation:
    """Question after question. `answers`: what the model said and what it cost, one by one."""

    def __init__(self, partner: Partner, terminal: Terminal, history: History) -> None:
        self.answers: list[Result] = []
        self._partner = partner
        self._terminal = terminal
        self._history = history

    def run(self) -> None:
        """Until the user leaves. Raises SidestageError, KeyboardInterrupt, BrokenPipeError."""
        for line in self._terminal.lines(self._partner.interrupts):
            match line.strip():
                case "/exit" | "/quit":
                    return
                case "/reset":
                    self._history.reset()
                    self._terminal.note("the conversation begins anew")
                case "/help":
                    for sentence in HELP:
                        self._terminal.note(sentence)
                case text:
                    self._ask(text)

    def _ask(self, text: str) -> None:
        self._history.ask(text)
        try:
            answer = self._partner.ask(self._history.messages, self._terminal.say)
        except ValueError as error:
            self._history.take_back()
            self._terminal.note(f"sidestage: {error}")
            return
        self._history.answer(answer["text"], answer["num_forgotten"])
        self.answers.append(answer)
        self._tell(answer)

    def _tell(self, answer: Result) -> None:
        if answer["num_forgotten"]:
            self._terminal.note(
                f"the context is full: the first {answer['num_forgotten']} messages are forgotten"
            )
        stopped = ", stopped" if answer["is_cut_short"] else ""
        self._terminal.note(status_line(answer) + stopped)


def _greet(terminal: Terminal, facts: Result) -> None:
    if not facts["has_template"]:
        terminal.note("the model has no chat template: it continues what is written, as it is")
    if terminal.is_interactive:
        for sentence in HELP:
            terminal.note(sentence)


def _forget_stdout() -> None:
    """Its reader has gone, which is no error; what is left in Python's buffer goes nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
