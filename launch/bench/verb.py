"""`sidestage bench`: names and options. Imports nothing heavy."""

from typing import Annotated

import typer

from compute import policies
from launch.options import BitsOption, DirectIoOption, GroupOption, JsonOption, PolicyOption, sentences


def bench(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="Checkpoint (hub id or folder) or store [default: the shipped one]."
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Instead of MODEL, dimensions without weights: olmoe-1b-7b, qwen3-30b-a3b, mixtral-8x7b, "
            "gpt-oss-20b or deepseek-v2-lite.",
        ),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(metavar="N", help="With --shape: its first N layers, dense ones counted.")
    ] = None,
    routing: Annotated[
        str | None, typer.Option(metavar="T.npz", help="Choose the experts that this trace recorded.")
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(metavar="N", help="Experts resident at once, over all layers [default: half of them]."),
    ] = None,
    ram: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory for experts, instead of --slots.")
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Of resident, offload, oracle, transformers, accelerate, by commas; offload@2 looks 2 "
            "layers ahead, offload@2:3 does so in stage 3 of a CUDA device [default: resident, offload, and "
            "transformers where there is a checkpoint].",
        ),
    ] = None,
    pp: Annotated[int, typer.Option("--pp", metavar="N", help="Tokens of the prompt (prefill).")] = 64,
    tg: Annotated[int, typer.Option("--tg", metavar="N", help="Tokens after it, one by one (decode).")] = 32,
    repeat: Annotated[int, typer.Option(metavar="R", help="Measured repeats; a warm-up comes first.")] = 3,
    gate_recall: Annotated[
        float,
        typer.Option(
            metavar="R", help="With --routing: how often the speculative gate is right about an expert."
        ),
    ] = 0.75,
    seed: Annotated[int, typer.Option(metavar="S", help="Of the gate's mistakes.")] = 0,
    device: Annotated[
        str,
        typer.Option(
            metavar="cpu|cuda",
            help="Where every arm computes; on cuda, offload is pinned: every expert in host memory.",
        ),
    ] = "cpu",
    bits: BitsOption = None,
    group: GroupOption = None,
    lookahead: Annotated[int, typer.Option(metavar="D", help="MoE layers to look ahead; 0 is off.")] = 1,
    link: Annotated[
        str | None, typer.Option(metavar="RATE", help="Offload over an emulated link, like 40MB/s.")
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            metavar="RATE", help="Read the store no faster than this, like 2GB/s [default: as it can]."
        ),
    ] = None,
    direct_io: DirectIoOption = "auto",
    policy: PolicyOption = policies.DEFAULT,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Compute threads [default: torch's].")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="S", help="Seconds to wait for a loader [default: 30].")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Measure prefill and decode of several ways to run a model, in turn, beside what is possible."""
    settings = dict(locals())
    with sentences():
        from compute.settings import rate_of, size_of
        from launch.bench.config import BenchConfig

        settings |= {
            "ram": size_of("--ram", ram),
            "link": rate_of("--link", link),
            "rate": rate_of("--rate", rate),
            "arms": tuple(part.strip() for part in arms.split(",")) if arms else (),
        }
        config = BenchConfig(**settings)
        from launch.bench.bench import bench as measure

        raise typer.Exit(measure(config))


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(epilog="Example: sidestage bench --slots 96 --pp 64 --tg 32")(bench)
