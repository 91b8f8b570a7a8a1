"""`sidestage doctor`: names and options. Imports nothing heavy."""

from typing import Annotated

import typer

from launch.options import JsonOption, sentences


def doctor(
    store: Annotated[
        str | None, typer.Option(metavar="DIR", help="Check every byte of this store too.")
    ] = None,
    clean: Annotated[
        bool,
        typer.Option(
            "--clean",
            help="Remove what crashed processes left: socket folders, unfinished conversions, broken stores.",
        ),
    ] = False,
    json: JsonOption = None,
) -> None:
    """Look at what sidestage needs of this machine: each line ok, warn, or fail, and how to fix it.

    Exit code 1 if one failed.
    """
    with sentences():
        from launch.doctor.examination import examine

        raise typer.Exit(examine(json=json, store=store, cleans=clean))


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(epilog="Example: sidestage doctor --store my-store")(doctor)
