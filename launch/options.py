"""Options that several commands share, and how a command answers an error. Imports nothing heavy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from launch.settings.origins import origins
from protocol.errors import SidestageError

INTERRUPTED = 130

ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]", help="Checkpoint (hub id or folder) or store [default: the shipped one]."
    ),
]
MaxNewTokensOption = Annotated[int, typer.Option(metavar="N", help="Stop after this many tokens.")]
TemperatureOption = Annotated[
    float | None, typer.Option(metavar="T", help="0 is greedy, without penalties [default: the model's own].")
]
TopPOption = Annotated[float | None, typer.Option(metavar="P", help="Nucleus [default: the model's own].")]
RepetitionPenaltyOption = Annotated[
    float | None, typer.Option(metavar="R", help="1 is none [default: the model's own].")
]
SeedOption = Annotated[int | None, typer.Option(metavar="S", help="Sampling's seed [default: a new one].")]
DeviceOption = Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where the model computes.")]
DtypeOption = Annotated[
    str, typer.Option(metavar="auto|bfloat16|float32", help="Of activations and dense weights.")
]
ThreadsOption = Annotated[int | None, typer.Option(metavar="N", help="Compute threads [default: torch's].")]
ArrangementOption = Annotated[
    str, typer.Option(metavar="auto|direct|emulated|staged|pinned", help="How experts reach the device.")
]
SlotsOption = Annotated[
    int | None, typer.Option(metavar="N", help="Experts resident at once, over all layers.")
]
VramOption = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Device memory for slots (staged, pinned).")
]
StageOption = Annotated[
    int,
    typer.Option(
        metavar="1|2|3",
        help="How far a CUDA device decodes without the host: not, layer by layer, a token in one graph.",
    ),
]
PolicyOption = Annotated[str, typer.Option(metavar="NAME", help="Eviction policy, or file.py:Class.")]
PredictorOption = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="What foresees experts: gate, previous-token, st-moe, some joined by +, or none."
    ),
]
LookaheadOption = Annotated[
    int | None, typer.Option(metavar="D", help="MoE layers to look ahead; 0 is off [default: 1].")
]
LinkOption = Annotated[
    str | None, typer.Option(metavar="RATE", help="Speed of the emulated link, like 40MB/s.")
]
ConnectOption = Annotated[
    str | None, typer.Option(metavar="ENDPOINT", help="Use a loader that already runs.")
]
TimeoutOption = Annotated[
    float | None, typer.Option(metavar="S", help="Seconds to wait for the loader [default: 30].")
]
DirectIoOption = Annotated[
    str,
    typer.Option(
        metavar="auto|on|off", help="Read experts past the page cache [auto: if they do not fit into it]."
    ),
]
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
    """An error that a user can act upon is one sentence and exit code 1, never a traceback.

    Settings that were not passed as flags are named first, and again in a complaint about them.
    """
    not_passed = origins()
    if not_passed:
        settings = ", ".join(f"{name} from {origin}" for name, origin in not_passed.items())
        typer.echo(f"settings: {settings}", err=True)
    try:
        yield
    except (SidestageError, ValueError) as error:
        named = [f"{name} comes from {origin}" for name, origin in not_passed.items() if name in str(error)]
        typer.echo(f"sidestage: {error}" + (f" ({', '.join(named)})" if named else ""), err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
