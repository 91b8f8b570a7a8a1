"""The command line: names, options and exit codes. Everything else is imported when a command runs.

0: done; 1: it could not be done, one sentence on stderr says why; 2: wrong usage; 130: Ctrl-C.
"""

import signal
import sys
from typing import Annotated

import typer

from launch.bench import verb as bench_verb
from launch.chat import verb as chat_verb
from launch.doctor import verb as doctor_verb
from launch.lab import verbs
from launch.option_groups import cache, compute, conversion, placement, sampling, takes
from launch.options import (
    INTERRUPTED,
    BitsOption,
    DirectIoOption,
    FastOption,
    GroupOption,
    JsonOption,
    MaxNewTokensOption,
    ModelArgument,
    RamOption,
    sentences,
)
from launch.planning import verb as plan_verb
from launch.server import verb as server_verb
from launch.settings import verb as config_verb
from launch.settings.effect import with_config
from launch.stress import verb as stress_verb
from launch.top import verb as top_verb

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Runs Mixture-of-Experts models whose experts do not fit on the device, as if they did.",
)


@app.command(epilog="Example: sidestage run --slots 48 --prompt 'There was once a wolf who'")
@takes(sampling, conversion, compute, cache, placement)
def run(
    model: ModelArgument = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What to continue; - reads it from stdin.")
    ] = None,
    max_new_tokens: MaxNewTokensOption = 200,
    json: JsonOption = None,
    timeline: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a Chrome trace of both processes.")
    ] = None,
    **given: object,
) -> None:
    """Continue a prompt with MODEL and tell what the cache, the prefetcher and the link did."""
    words = {
        "model": model,
        "prompt": prompt,
        "max_new_tokens": max_new_tokens,
        "json": json,
        "timeline": timeline,
    }
    with sentences():
        from launch.config import run_config

        config = run_config({**words, **given})
        from launch.run import run_model

        raise typer.Exit(run_model(config))


@app.command(epilog="Example: sidestage convert org/model my-store --bits 4")
def convert(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint: hub id or folder.")],
    store: Annotated[str, typer.Argument(metavar="STORE", help="Folder to write.")],
    bits: BitsOption = None,
    group: GroupOption = None,
    fast: FastOption = False,
) -> None:
    """Write the experts of MODEL into STORE, quantized; an interrupted conversion goes on where it was."""
    with sentences():
        from loader.convert import main as convert_main

        options = [] if bits is None else ["--bits", bits]
        options += [] if group is None else ["--group", str(group)]
        options += ["--fast"] if fast else []
        raise typer.Exit(convert_main([*options, "--", model, store]))


@app.command(epilog="Example: sidestage loader my-store --ram 8GiB --endpoint ./endpoint")
def loader(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Folder that `sidestage convert` wrote.")],
    ram: RamOption = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="E", help="Path of the socket to listen on [default: a new one].")
    ] = None,
    direct_io: DirectIoOption = "auto",
    json: JsonOption = None,
) -> None:
    """Serve STORE to other processes until Ctrl-C: `run --connect`, `offload(..., connect=...)`."""
    with sentences():
        from compute.settings import size_of
        from launch.standalone_loader import serve_store

        serve_store(store, ram=size_of("--ram", ram), endpoint=endpoint, direct_io=direct_io, json=json)


chat_verb.add_to(app)
server_verb.add_to(app)
verbs.add_to(app)
stress_verb.add_to(app)
plan_verb.add_to(app)
bench_verb.add_to(app)
top_verb.add_to(app)
config_verb.add_to(app)
doctor_verb.add_to(app)


def main() -> None:
    """The console script. SIGTERM ends a verb as Ctrl-C does: what it has opened is closed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        command = typer.main.get_command(app)
        with_config(command)
        command()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
