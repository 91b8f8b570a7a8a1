"""What sidestage.toml and the environment say about the settings of each command.

Every key is checked against the schema, for every command at once, so that a slip is an error and
never a setting without effect. Knows no flags: those are the command line's.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from launch.settings.schema import Parameter, Schema, is_flag, nearest

DEFAULT_FILE = "sidestage.toml"
PREFIX = "SIDESTAGE_"
FILE_VARIABLE = "SIDESTAGE_CONFIG"


@dataclass(frozen=True, slots=True)
class Said:
    """A value as it was written, and where."""

    value: object
    origin: str


#: "trace record" -> "slots" -> what was said; only what was said.
Sources = Mapping[str, Mapping[str, Said]]


def config_file(asked: str | None, environ: Mapping[str, str]) -> Path | None:
    """`--config`, else SIDESTAGE_CONFIG, else ./sidestage.toml if it is there. Raises ValueError."""
    named = asked or environ.get(FILE_VARIABLE)
    if not named:
        return Path(DEFAULT_FILE) if Path(DEFAULT_FILE).is_file() else None
    if Path(named).is_dir() or not Path(named).exists():
        option = "--config" if asked else FILE_VARIABLE
        raise ValueError(
            f"{option} names {named}, and there is no such file: write it, or leave {option} out"
        )
    return Path(named)


def read_sources(schema: Schema, file: Path | None, environ: Mapping[str, str]) -> Sources:
    """The environment's word over the file's. Raises ValueError for a key or a value that cannot be."""
    said: dict[str, dict[str, Said]] = {path: {} for path in schema}
    for path, name, value in _sorted_entries(file):
        _note(said, schema, path, name, Said(value, str(file)))
    for variable, text in environ.items():
        if variable.startswith(PREFIX) and variable != FILE_VARIABLE and text:
            _note_variable(said, schema, variable, text)
    return said


def _sorted_entries(file: Path | None) -> list[tuple[str, str, object]]:
    """(command, key, value) of the file; first what all commands share: tables overrule it."""
    if file is None:
        return []
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{file} cannot be read as TOML: {error}") from None
    return sorted(_entries(document, ""), key=lambda entry: entry[0] != "")


def _entries(table: Mapping[str, object], path: str) -> Iterator[tuple[str, str, object]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _entries(value, f"{path} {key}".strip())
        else:
            yield path, key.replace("-", "_"), value


def _note(said: dict[str, dict[str, Said]], schema: Schema, path: str, name: str, entry: Said) -> None:
    """Enter what a file says for one command, or at its top for every command that has such a setting."""
    if path and path not in schema:
        raise ValueError(f"{entry.origin}: there is no command [{_table(path)}]: {_commands(schema)}")
    known = schema[path] if path else _all_settings(schema)
    if name not in known:
        where = f"sidestage {path} has" if path else "there is"
        raise ValueError(f"{entry.origin}: {where} no setting {name}: {nearest(name, known)}")
    for command in [path] if path else schema:
        if name in schema[command]:
            value = _as_written(schema[command][name], name, entry)
            said[command][name] = Said(
                value, entry.origin if not path else f"{entry.origin} [{_table(path)}]"
            )


def _note_variable(said: dict[str, dict[str, Said]], schema: Schema, variable: str, text: str) -> None:
    name = variable.removeprefix(PREFIX).lower()
    known = _all_settings(schema)
    if name not in known:
        variables = [PREFIX + setting.upper() for setting in (*known, "config")]
        raise ValueError(f"{variable} is no setting: {nearest(variable, variables)}")
    for command, parameters in schema.items():
        if name in parameters:
            value = text.replace(",", " ").split() if parameters[name].multiple else text
            said[command][name] = Said(value, variable)


def _as_written(parameter: Parameter, name: str, entry: Said) -> object:
    """The value in the words of a command line, whose types then hold for it as well."""
    value = entry.value
    if is_flag(parameter):
        fits, wanted = isinstance(value, bool), "true or false"
    elif parameter.multiple:
        fits, wanted = isinstance(value, list) and all(map(_is_scalar, value)), "a list of values"
    else:
        fits, wanted = _is_scalar(value), "one number or one text"
    if not fits:
        raise ValueError(f"{entry.origin}: {name} is {value!r}; it must be {wanted}")
    if isinstance(value, bool):
        return value
    return [str(part) for part in value] if isinstance(value, list) else str(value)


def _is_scalar(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _all_settings(schema: Schema) -> dict[str, Parameter]:
    return {name: parameter for parameters in schema.values() for name, parameter in parameters.items()}


def _table(path: str) -> str:
    return path.replace(" ", ".")


def _commands(schema: Schema) -> str:
    return f"known are {', '.join(f'[{_table(path)}]' for path in schema)}"
