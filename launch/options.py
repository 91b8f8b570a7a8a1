"""Options that several commands share, and how a command answers an error. Imports nothing heavy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from protocol.errors import SidestageError

INTERRUPTED = 130

JsonOption = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE|-", help="Write one JSON object to FILE, or to stdout (-)."),
]
BitsOption = Annotated[
    str | None,
    typer.Option(metavar="8|4|3|2|none", help="Bits per expert weight [default: 4; a store's own]."),
]
GroupOption = Annotated[
    int | None, typer.Option(metavar="G", help="Weights that share a scale [default: 64; a store's own].")
]
FastOption = Annotated[bool, typer.Option("--fast", help="Plain rounding instead of HQQ's optimisation.")]
RamOption = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Host memory for experts, like 900MiB [default: what is free]."),
]


@contextmanager
def sentences() -> Iterator[None]:
    """An error that a user can act upon is one sentence and exit code 1, never a traceback."""
    try:
        yield
    except (SidestageError, ValueError) as error:
        typer.echo(f"sidestage: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
