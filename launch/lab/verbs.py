"""`sidestage trace record`, `trace info` and `simulate`: names and options. Imports nothing heavy."""

from typing import Annotated

import typer

from launch.option_groups import cache, compute, conversion, sampling, takes
from launch.options import (
    JsonOption,
    ModelArgument,
    sentences,
)

trace_app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Record which experts tokens use, and look at it."
)

TraceArgument = Annotated[str, typer.Argument(metavar="T.npz", help="Trace file.")]
TokensOption = Annotated[
    int | None, typer.Option(metavar="N", help="Only the first N tokens of each trace [default: all].")
]
PlotOption = Annotated[str | None, typer.Option(metavar="FILE.png", help="Draw it (needs matplotlib).")]


@trace_app.command(epilog="Example: sidestage trace record --text book.txt --tokens 2000 --out book.npz")
@takes(sampling, conversion, compute, cache)
def record(
    model: ModelArgument = None,
    *,
    out: Annotated[str, typer.Option(metavar="T.npz", help="The trace file to write.")],
    prompts: Annotated[
        str | None, typer.Option(metavar="FILE", help="Continue each line of FILE, as `run` would.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(metavar="FILE", help="Run the text of FILE through, nothing is generated.")
    ] = None,
    passes: Annotated[
        str,
        typer.Option(
            metavar="token|window|split",
            help="With --text: one token a pass, as in decode; one window a pass, as in prefill; or a window "
            "at once, written as one token a pass (fast, but the live counters speak of windows).",
        ),
    ] = "token",
    window: Annotated[
        int | None,
        typer.Option(metavar="N", help="With --text: tokens a window [default: the context, at most 2048]."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(metavar="N", help="With --text: only its first N tokens [default: all].")
    ] = None,
    predicted: Annotated[
        int,
        typer.Option(metavar="D", help="Keep what the gate predicts up to D layers ahead; 0 is nothing."),
    ] = 2,
    probs: Annotated[
        bool, typer.Option("--probs", help="Keep the routers' whole distributions, not the chosen alone.")
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", help="With --prompts: stop after this many tokens each.")
    ] = 200,
    json: JsonOption = None,
    **given: object,
) -> None:
    """Run MODEL over prompts or a text, and write which experts each token used.

    Slots, policy and prefetch change neither tokens nor routing; they are here so that what the live
    cache did can be compared with a replay of the trace.
    """
    with sentences():
        from launch.config import run_config
        from launch.lab.config import RecordConfig

        words = {"model": model, "max_new_tokens": max_new_tokens, "json": json, **given}
        config = RecordConfig(
            run=run_config(words),
            out=out,
            prompts=prompts,
            text=text,
            passes=passes,
            window=window,
            tokens=tokens,
            predicted=predicted,
            probs=probs,
        )
        from launch.lab.record import record_trace

        record_trace(config)


@trace_app.command(epilog="Example: sidestage trace info book.npz --plot book.png")
def info(
    trace: TraceArgument,
    tokens: TokensOption = None,
    plot: PlotOption = None,
    json: JsonOption = None,
) -> None:
    """Tell what a trace holds: popularity, overlap between tokens, LRU's hit rate at every capacity."""
    with sentences():
        from launch.lab.info import tell

        tell(trace, tokens=tokens, plot=plot, json=json)


def simulate(
    traces: Annotated[list[str], typer.Argument(metavar="TRACE...", help="Trace files.")],
    capacity: Annotated[
        list[float] | None,
        typer.Option(
            metavar="C", help="Fraction of the experts that have a slot; again for more [0.25, 0.5]."
        ),
    ] = None,
    scope: Annotated[
        str, typer.Option(metavar="global|layer", help="One pool for all layers, or a share for each.")
    ] = "global",
    policy: Annotated[
        str, typer.Option(metavar="all|A,B,...", help="Policies by name, or your own as file.py:Class.")
    ] = "all",
    predictor: Annotated[
        str,
        typer.Option(
            metavar="P", help="Prefetch too: gate (where the trace holds it), previous-token, st-moe."
        ),
    ] = "none",
    lookahead: Annotated[
        int | None, typer.Option(metavar="D", help="MoE layers to look ahead [default: 1 with a predictor].")
    ] = None,
    tokens: TokensOption = None,
    link: Annotated[
        str | None, typer.Option(metavar="RATE", help="Model the time over a link, like 25GB/s.")
    ] = None,
    blob_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of one expert [default: what the trace says].")
    ] = None,
    layer_us: Annotated[
        float | None, typer.Option(metavar="C", help="Microseconds that one MoE layer's compute takes.")
    ] = None,
    advise: Annotated[
        bool, typer.Option("--advise", help="Name policy, slots and lookahead, with the reason.")
    ] = False,
    ram: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="With --advise: the memory for experts, not --capacity."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(metavar="N", help="Processes [default: one for each core].")
    ] = None,
    json: JsonOption = None,
    plot: PlotOption = None,
) -> None:
    """Replay traces under eviction policies: hit rates, and how near each comes to the best possible."""
    with sentences():
        from compute.settings import layers_ahead, rate_of, size_of
        from launch.lab.config import SimulateConfig

        config = SimulateConfig(
            traces=tuple(traces),
            capacities=tuple(capacity or ()),
            scope=scope,
            policy=policy,
            predictor=predictor,
            lookahead=layers_ahead(predictor, lookahead),
            tokens=tokens,
            link=rate_of("--link", link),
            blob_bytes=size_of("--blob-bytes", blob_bytes),
            layer_us=layer_us,
            advise=advise,
            ram=size_of("--ram", ram),
            jobs=jobs,
            json=json,
            plot=plot,
        )
        from launch.lab.simulate import simulate_traces

        simulate_traces(config)


def add_to(app: typer.Typer) -> None:
    """Register the laboratory's commands."""
    app.add_typer(trace_app, name="trace")
    app.command(epilog="Example: sidestage simulate book.npz --capacity 0.25 --capacity 0.5 --advise")(
        simulate
    )
