"""`sidestage top`: names and options. Imports nothing heavy."""

from typing import Annotated

import typer

from launch.options import JsonOption, TimeoutOption, sentences


def top(
    endpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="[ENDPOINT]", help="Of the loader to look at [default: the only one that runs]."
        ),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Look for a few seconds, print one frame, and end.")
    ] = False,
    interval: Annotated[float, typer.Option(metavar="S", help="Seconds between two frames.")] = 1.0,
    timeout: TimeoutOption = None,
    json: JsonOption = None,
) -> None:
    """Watch a running loader and its clients: who is in a slot, hits and misses, the queue, the traffic.

    Ctrl-C ends it. Where stdout is no terminal, and with --json, one frame is all.
    """
    with sentences():
        from compute.patience import timeout_setting
        from launch.top.watch import watch

        watch(endpoint, once=once, interval_s=interval, timeout_s=timeout_setting(timeout), json=json)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(epilog="Example: sidestage top ./endpoint --once")(top)
