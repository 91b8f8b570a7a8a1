"""`sidestage chat`: names and options. Imports nothing heavy."""

from typing import Annotated

import typer

from launch.option_groups import cache, compute, conversion, placement, sampling, takes
from launch.options import JsonOption, MaxNewTokensOption, ModelArgument, sentences


@takes(sampling, conversion, compute, cache, placement)
def chat(
    model: ModelArgument = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the model shall keep to, before all else.")
    ] = None,
    max_new_tokens: MaxNewTokensOption = 200,
    json: JsonOption = None,
    **given: object,
) -> None:
    """Converse with MODEL: lines in, answers out, in the terminal or in a script.

    Ctrl-C stops an answer, Ctrl-D or /exit leaves. --json writes all answers at the end.
    """
    words = {"model": model, "max_new_tokens": max_new_tokens, "json": json, **given}
    with sentences():
        from launch.chat.config import ChatConfig
        from launch.config import run_config

        config = ChatConfig(run_config(words), system)
        from launch.chat.chat import chat as converse

        raise typer.Exit(converse(config))


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(epilog="Example: sidestage chat --slots 48 --temperature 0.8 --seed 1")(chat)
