"""Which settings there are: the command line's own options, and nothing beside them.

A setting is an option, or an argument that may be left out; SIDESTAGE_SLOTS and the key `slots` are
`--slots`. Knows no value and no file.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Protocol

#: Not settings: they ask where settings are, which they are, or for help.
_NO_SETTINGS = ("config", "command", "help")


class Parameter(Protocol):
    """An option or an argument, as typer makes it."""

    name: str
    param_type_name: str
    multiple: bool
    required: bool
    default: Any

    def process_value(self, ctx: Any, value: object) -> Any: ...


class Command(Protocol):
    """A command as typer makes it; a group of them has `commands`."""

    params: list[Any]


#: "trace record" -> "slots" -> the parameter.
Schema = Mapping[str, Mapping[str, Parameter]]


def leaves(root: Command, path: str = "") -> dict[str, Command]:
    """Every command below `root` that does something, by its words."""
    commands: Mapping[str, Command] | None = getattr(root, "commands", None)
    if commands is None:
        return {path: root}
    found: dict[str, Command] = {}
    for name, command in commands.items():
        found |= leaves(command, f"{path} {name}".strip())
    return found


def schema_of(root: Command) -> Schema:
    """The settings of every command."""
    return {
        path: {p.name: p for p in command.params if _is_setting(p)} for path, command in leaves(root).items()
    }


def label(parameter: Parameter) -> str:
    """How a command line names it: `--max-new-tokens`, `MODEL`."""
    if parameter.param_type_name == "argument":
        return parameter.name.upper()
    return f"--{parameter.name.replace('_', '-')}"


def is_flag(parameter: Parameter) -> bool:
    """Whether it is said or not, without a value."""
    return bool(getattr(parameter, "is_flag", False))


def nearest(word: str, known: Mapping[str, object] | list[str]) -> str:
    """How an unknown word is answered: what was meant, perhaps, and what there is."""
    near = get_close_matches(word, known, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"{meant}Known are {', '.join(sorted(known))}"


def _is_setting(parameter: Parameter) -> bool:
    if parameter.name in _NO_SETTINGS:
        return False
    return parameter.param_type_name == "option" or not parameter.required
