"""The command line: names, options and exit codes. Everything else is imported when a command runs.

0: done; 1: it could not be done, one sentence on stderr says why; 2: wrong usage; 130: Ctrl-C.
"""

import sys
from typing import Annotated

import typer

from launch.bench import verb as bench_verb
from launch.lab import verbs
from launch.options import (
    INTERRUPTED,
    BitsOption,
    FastOption,
    GroupOption,
    JsonOption,
    RamOption,
    sentences,
)
from launch.stress import verb as stress_verb

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Runs Mixture-of-Experts models whose experts do not fit on the device, as if they did.",
)


@app.command()
def run(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="Checkpoint (hub id or folder) or store [default: the shipped one]."
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What to continue; - reads it from stdin.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Stop after this many tokens.")] = 200,
    temperature: Annotated[
        float | None,
        typer.Option(metavar="T", help="0 is greedy, without penalties [default: the model's own]."),
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(metavar="P", help="Nucleus [default: the model's own].")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(metavar="R", help="1 is none [default: the model's own].")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="S", help="Sampling's seed [default: a new one].")
    ] = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where the model computes.")] = "auto",
    dtype: Annotated[
        str, typer.Option(metavar="auto|bfloat16|float32", help="Of activations and dense weights.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Compute threads [default: torch's].")
    ] = None,
    bits: BitsOption = None,
    group: GroupOption = None,
    fast: FastOption = False,
    arrangement: Annotated[
        str,
        typer.Option(metavar="auto|direct|emulated|staged|pinned", help="How experts reach the device."),
    ] = "auto",
    slots: Annotated[
        int | None, typer.Option(metavar="N", help="Experts resident at once, over all layers.")
    ] = None,
    vram: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Device memory for slots (staged, pinned).")
    ] = None,
    ram: RamOption = None,
    policy: Annotated[str, typer.Option(metavar="NAME", help="Eviction policy, or file.py:Class.")] = "lru",
    predictor: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What foresees experts: gate, previous-token, st-moe, some joined by +, or none.",
        ),
    ] = "gate",
    lookahead: Annotated[
        int | None, typer.Option(metavar="D", help="MoE layers to look ahead; 0 is off [default: 1].")
    ] = None,
    link: Annotated[
        str | None, typer.Option(metavar="RATE", help="Speed of the emulated link, like 40MB/s.")
    ] = None,
    connect: Annotated[
        str | None, typer.Option(metavar="ENDPOINT", help="Use a loader that already runs.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="S", help="Seconds to wait for the loader [default: 30].")
    ] = None,
    json: JsonOption = None,
    timeline: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a Chrome trace of both processes.")
    ] = None,
) -> None:
    """Continue a prompt with MODEL and tell what the cache, the prefetcher and the link did."""
    settings = dict(locals())
    with sentences():
        from compute.settings import rate_of, size_of
        from launch.config import RunConfig

        settings |= {"vram": size_of("--vram", vram), "ram": size_of("--ram", ram)}
        config = RunConfig(**{**settings, "link": rate_of("--link", link)})
        from launch.run import run_model

        raise typer.Exit(run_model(config))


@app.command()
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


@app.command()
def loader(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Folder that `sidestage convert` wrote.")],
    ram: RamOption = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="E", help="Path of the socket to listen on [default: a new one].")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Serve STORE to other processes until Ctrl-C: `run --connect`, `offload(..., connect=...)`."""
    with sentences():
        from compute.settings import size_of
        from launch.serving import serve_store

        serve_store(store, ram=size_of("--ram", ram), endpoint=endpoint, json=json)


@app.command()
def doctor(
    json: JsonOption = None,
    store: Annotated[str | None, typer.Option(metavar="DIR", help="Check this store too.")] = None,
) -> None:
    """Look at what sidestage needs of this machine: each line ok, warn, or how to fix it."""
    with sentences():
        from launch.doctor import examine

        raise typer.Exit(examine(json=json, store=store))


verbs.add_to(app)
stress_verb.add_to(app)
bench_verb.add_to(app)


def main() -> None:
    """The console script."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
