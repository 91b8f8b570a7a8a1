"""`sidestage plan`: names and options. Imports nothing heavy."""

from typing import Annotated

import typer

from launch.options import BitsOption, GroupOption, JsonOption, SlotsOption, ThreadsOption, sentences


def plan(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Checkpoint (folder or hub id; a config is enough) or store."),
    ],
    vram: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Device memory for slots; without it the CPU computes.")
    ] = None,
    ram: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Host memory for experts [default: what is free on this machine]."),
    ] = None,
    slots: SlotsOption = None,
    context: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens that the KV cache shall hold [default: 4096].")
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(
            metavar="RATE", help="Speed at which experts come: of the disk, or of PCIe with --vram."
        ),
    ] = None,
    compute: Annotated[
        str | None,
        typer.Option(
            metavar="RATE", help="Bytes of weights that the device works through [default: measured here]."
        ),
    ] = None,
    bits: BitsOption = None,
    group: GroupOption = None,
    threads: ThreadsOption = None,
    trace: Annotated[
        str | None, typer.Option(metavar="T.npz", help="Take the hit rates from this recorded routing.")
    ] = None,
    save: Annotated[
        str | None, typer.Option(metavar="FILE.toml", help="Write the settings for `sidestage run --config`.")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Tell whether MODEL fits and how fast it may run, from its config alone: no weight is read.

    Example: sidestage plan org/name --vram 6GiB --ram 32GiB --context 8192
    """
    words = dict(locals())
    with sentences():
        from compute.settings import rate_of, size_of
        from launch.planning.config import PlanConfig

        sizes = {name: size_of(f"--{name}", words[name]) for name in ("vram", "ram")}
        rates = {name: rate_of(f"--{name}", words[name]) for name in ("link", "compute")}
        config = PlanConfig(**{**words, **sizes, **rates})
        from launch.planning.plan import plan as make_plan

        make_plan(config)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(epilog="Example: sidestage plan org/model --vram 12GiB --ram 32GiB --save sidestage.toml")(
        plan
    )
