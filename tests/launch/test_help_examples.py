"""`--help` of every command ends with an example, and the example is one that the command takes."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from support.cli import call

from launch.cli import app
from launch.settings.schema import leaves

COMMANDS = leaves(typer.main.get_command(app))  # type: ignore[arg-type]


def _example(command: str) -> list[str]:
    """The words of the example, `sidestage` and the command's own left out."""
    epilog = getattr(COMMANDS[command], "epilog", None) or ""
    prefix = f"Example: sidestage {command}"
    assert epilog.startswith(prefix), f"the help of {command} ends with no example"
    return shlex.split(epilog.removeprefix(prefix))


def test_every_command_is_there() -> None:
    assert {"run", "chat", "serve", "bench", "plan", "doctor", "config", "trace record"} < set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_the_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = call(capsys, *command.split(), "--help").out.split()
    assert words[words.index("Example:") + 2] == command.split()[0]
    assert words[-1].strip("'") == (_example(command) or [command])[-1].split()[-1]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_is_one_that_the_command_takes(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    context = COMMANDS[command].make_context(command, _example(command))  # type: ignore[attr-defined]
    assert context.params


def test_the_help_of_all_commands_is_light() -> None:
    heavy = ("torch", "transformers", "numpy", "zmq", "hqq", "safetensors", "fastapi")
    probe = f"import sys, launch.cli; print(*(n for n in {heavy!r} if n in sys.modules))"
    ended = subprocess.run([sys.executable, "-P", "-c", probe], capture_output=True, text=True, check=True)
    assert ended.stdout == "\n"
