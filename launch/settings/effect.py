"""Gives every command its settings: what file and environment say stands where no flag was passed.

Adds `--config FILE` to each command. Knows nothing of what the settings mean.
"""

import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from launch.options import sentences
from launch.settings.origins import note_origins
from launch.settings.schema import Command, Parameter, Schema, label, leaves, schema_of
from launch.settings.sources import Said, Sources, config_file, read_sources

#: Where a command's context keeps what `--config` named.
ASKED_FILE = "sidestage.config"


def with_config(root: Command) -> None:
    """Every command below `root` takes its settings from file and environment too."""
    schema = schema_of(root)
    for path, command in leaves(root).items():
        command.params.append(_config_option(path, schema))


def checked_sources(schema: Schema, asked: str | None, ctx: typer.Context) -> Sources:
    """What file and environment say, each value in its option's type. Raises ValueError."""
    sources = read_sources(schema, config_file(asked, os.environ), os.environ)
    return {
        path: {name: _typed(schema, path, name, entry, ctx) for name, entry in said.items()}
        for path, said in sources.items()
    }


def _typed(schema: Schema, path: str, name: str, entry: Said, ctx: typer.Context) -> Said:
    try:
        return Said(schema[path][name].process_value(ctx, entry.value), entry.origin)
    except typer.BadParameter as error:
        raise ValueError(f"{entry.origin}: {name} for sidestage {path}: {error.message}") from None


def _config_option(path: str, schema: Schema) -> Any:
    """An option as typer makes it, which is looked at before all others and passed to nobody."""

    def settle(ctx: typer.Context, asked: str | None) -> None:
        note_origins(dict)
        with sentences():
            said = checked_sources(schema, asked, ctx)[path]
        ctx.default_map = {name: entry.value for name, entry in said.items()}
        ctx.meta[ASKED_FILE] = asked
        note_origins(lambda: _not_passed(ctx, schema[path], said))

    def command(
        config: Annotated[
            str | None,
            typer.Option(
                "--config",
                metavar="FILE",
                help="Settings in TOML [default: SIDESTAGE_CONFIG, else ./sidestage.toml].",
                is_eager=True,
                callback=settle,
            ),
        ] = None,
    ) -> None:
        """Carries the option."""

    app = typer.Typer(add_completion=False)
    app.command()(command)
    option = next(p for p in typer.main.get_command(app).params if p.name == "config")
    option.expose_value = False
    return option


def _not_passed(
    ctx: typer.Context, known: Mapping[str, Parameter], said: Mapping[str, Said]
) -> dict[str, str]:
    sources = {name: ctx.get_parameter_source(name) for name in said}
    return {
        label(known[name]): said[name].origin
        for name, source in sources.items()
        if source is not None and source.name == "DEFAULT_MAP"
    }
