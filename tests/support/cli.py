"""The command line as users meet it: in this process for what ends early, as real processes for the rest."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.cli import main

SIDESTAGE = [sys.executable, "-P", "-c", "from launch.cli import main; main()"]
GREEDY = ("--temperature", "0", "--threads", "1", "--prompt", "Once upon a time there was a king who")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        parsed = json.loads(self.out)
        assert isinstance(parsed, dict)
        return parsed


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Answer:
    """`sidestage ARGUMENTS` in this process."""
    log = logging.getLogger("sidestage")
    before = sys.argv, list(log.handlers), log.propagate
    sys.argv = ["sidestage", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv, log.handlers, log.propagate = before
    captured = capsys.readouterr()
    code = ended.value.code
    return Answer(code if isinstance(code, int) else 0, captured.out, captured.err)


def assert_refused(answer: Answer, *words: str, code: int = 1) -> str:
    """Nothing on stdout, and one sentence with `words` in it at the end of stderr; the sentence."""
    assert (answer.code, answer.out) == (code, ""), answer
    assert "Traceback" not in answer.err, answer.err
    sentence = answer.err.strip().splitlines()[-1]
    assert sentence.startswith("sidestage: "), answer.err
    for word in words:
        assert word in sentence, f"no {word!r} in {sentence!r}"
    return sentence


def run(*arguments: str | Path, timeout_s: float = 240.0) -> Answer:
    """`sidestage ARGUMENTS` as a process of its own, to its end."""
    ended = subprocess.run(
        [*SIDESTAGE, *map(str, arguments)], capture_output=True, text=True, timeout=timeout_s, check=False
    )
    return Answer(ended.returncode, ended.stdout, ended.stderr)


class Running:
    """`sidestage ARGUMENTS` under way."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._seen = b""

    def await_text(self) -> None:
        """Until the first words are on stdout."""
        assert self.process.stdout is not None
        self._seen += os.read(self.process.stdout.fileno(), 1)
        assert self._seen, "it ended without a word"

    def child(self, word: str, timeout_s: float = 60.0) -> psutil.Process:
        """The child whose command line has `word` in it."""
        parent = psutil.Process(self.process.pid)
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            for child in parent.children():
                if word in child.cmdline():
                    return child
            time.sleep(0.02)
        raise AssertionError(f"no child with {word!r} in its command line")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, timeout_s: float = 240.0) -> Answer:
        """Wait for the end."""
        out, err = self.process.communicate(timeout=timeout_s)
        return Answer(self.process.returncode, (self._seen + out).decode(), err.decode())


@contextmanager
def running(*arguments: str | Path) -> Iterator[Running]:
    """Start `sidestage ARGUMENTS`; it is killed at the end if it still runs."""
    process = subprocess.Popen(
        [*SIDESTAGE, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        try:
            yield Running(process)
        finally:
            process.kill()
