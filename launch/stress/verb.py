"""`sidestage stress`: names and options. Imports nothing heavy."""

from typing import Annotated

import typer

from launch.options import JsonOption, sentences


def stress(
    seconds: Annotated[float, typer.Option(metavar="N", help="How long, once all are ready.")] = 10.0,
    clients: Annotated[int, typer.Option(metavar="C", help="Client processes on one loader.")] = 2,
    arrangement: Annotated[
        str, typer.Option(metavar="emulated|direct|pinned", help="How experts reach the device.")
    ] = "emulated",
    link: Annotated[
        str | None, typer.Option(metavar="RATE", help="Speed of each client's emulated link [40MB/s].")
    ] = None,
    faults: Annotated[
        str,
        typer.Option(
            metavar="LIST|all|none",
            help="kill-loader, stop-loader, kill-client, slow-disk, corrupt-blob, truncated-store, "
            "full-memory, drop-message, garbage-message.",
        ),
    ] = "all",
    seed: Annotated[int, typer.Option(metavar="S", help="Of the load and of the faults.")] = 0,
    json: JsonOption = None,
    plot: Annotated[
        str | None,
        typer.Option(metavar="FILE.png", help="Draw throughput and overlap over link speed and queue depth."),
    ] = None,
) -> None:
    """Drive a loader and its clients with synthetic layer-steps, break things, and check every byte.

    Exit code 1 if anything was corrupt, lost or left behind.
    """
    with sentences():
        from compute.settings import rate_of
        from launch.stress.config import StressConfig, parse_faults

        rate = rate_of("--link", link) or StressConfig().link
        config = StressConfig(seconds, clients, arrangement, rate, parse_faults(faults), seed, json, plot)
        from launch.stress.run import run_stress

        raise typer.Exit(run_stress(config))


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(epilog="Example: sidestage stress --seconds 60 --clients 2 --faults all")(stress)
