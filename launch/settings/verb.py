"""`sidestage config`: the settings of every command that file and environment make, and where from."""

import json as json_text
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import typer

from launch.options import JsonOption, sentences
from launch.settings.schema import Schema, nearest, schema_of
from launch.settings.sources import Sources, config_file

DEFAULT = "default"
#: Their values are shown to nobody.
_SECRETS = ("api_key",)
_HIDDEN = "(hidden)"


@dataclass(frozen=True, slots=True)
class Effective:
    """A setting's value as JSON has it, and where it comes from."""

    value: object
    origin: str


def config(
    ctx: typer.Context,
    command: Annotated[
        str | None,
        typer.Argument(metavar="[COMMAND]", help='Of this command alone, like run or "trace record".'),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Print every setting's effective value, and where it comes from.

    A flag stands over SIDESTAGE_*, and that over sidestage.toml.
    """
    with sentences():
        from launch.output import check_place, write_json
        from launch.settings.effect import ASKED_FILE, checked_sources

        check_place("--json", json)
        asked = ctx.meta[ASKED_FILE]
        schema = schema_of(ctx.find_root().command)
        shown = _chosen(schema, command)
        table = effective(shown, checked_sources(schema, asked, ctx))
        file = config_file(asked, os.environ)
        if json is not None:
            commands = {
                path: {name: {"value": e.value, "from": e.origin} for name, e in rows.items()}
                for path, rows in table.items()
            }
            write_json(json, json_text.dumps({"file": str(file) if file else None, "commands": commands}))
        if json != "-":
            sys.stdout.writelines(f"{line}\n" for line in lines_of(table))


def effective(schema: Schema, sources: Sources) -> dict[str, dict[str, Effective]]:
    """What each command of `schema` would use if no flag were passed."""
    table: dict[str, dict[str, Effective]] = {}
    for path, parameters in schema.items():
        said = sources[path]
        rows = {
            name: Effective(said[name].value, said[name].origin)
            if name in said
            else Effective(parameter.default, DEFAULT)
            for name, parameter in parameters.items()
        }
        table[path] = {name: _veiled(name, row) for name, row in rows.items()}
    return table


def lines_of(table: Mapping[str, Mapping[str, Effective]]) -> Iterator[str]:
    """One line for each setting and value, with the commands that it holds for."""
    commands: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for path, rows in table.items():
        for name, row in rows.items():
            commands[name.replace("_", "-"), _shown(row.value), row.origin].append(path)
    cells = sorted((*key, ", ".join(paths)) for key, paths in commands.items())
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    for name, value, origin, paths in cells:
        yield f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin:<{widths[2]}}  {paths}"


def _chosen(schema: Schema, command: str | None) -> Schema:
    if command is None:
        return schema
    if command not in schema:
        raise ValueError(f"there is no command {command!r}: {nearest(command, list(schema))}")
    return {command: schema[command]}


def _veiled(name: str, row: Effective) -> Effective:
    return Effective(_HIDDEN, row.origin) if name in _SECRETS and row.value is not None else row


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return json_text.dumps(value) if isinstance(value, bool | list | tuple) else str(value)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(epilog="Example: sidestage config run")(config)
