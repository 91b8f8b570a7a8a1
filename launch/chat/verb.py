"""`sidestage chat`: names and options. Imports nothing heavy."""

from typing import Annotated

import typer

from launch.options import (
    ArrangementOption,
    BitsOption,
    ConnectOption,
    DeviceOption,
    DirectIoOption,
    DtypeOption,
    FastOption,
    GroupOption,
    JsonOption,
    LinkOption,
    LookaheadOption,
    MaxNewTokensOption,
    ModelArgument,
    PolicyOption,
    PredictorOption,
    RamOption,
    RepetitionPenaltyOption,
    SeedOption,
    SlotsOption,
    TemperatureOption,
    ThreadsOption,
    TimeoutOption,
    TopPOption,
    VramOption,
    sentences,
)


def chat(
    model: ModelArgument = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the model shall keep to, before all else.")
    ] = None,
    max_new_tokens: MaxNewTokensOption = 200,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    repetition_penalty: RepetitionPenaltyOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = None,
    bits: BitsOption = None,
    group: GroupOption = None,
    fast: FastOption = False,
    arrangement: ArrangementOption = "auto",
    slots: SlotsOption = None,
    vram: VramOption = None,
    ram: RamOption = None,
    policy: PolicyOption = "lru",
    predictor: PredictorOption = "gate",
    lookahead: LookaheadOption = None,
    link: LinkOption = None,
    connect: ConnectOption = None,
    timeout: TimeoutOption = None,
    direct_io: DirectIoOption = "auto",
    json: JsonOption = None,
) -> None:
    """Converse with MODEL: lines in, answers out, in the terminal or in a script.

    Ctrl-C stops an answer, Ctrl-D or /exit leaves. --json writes all answers at the end.
    """
    words = dict(locals())
    with sentences():
        from launch.chat.config import ChatConfig
        from launch.config import run_config

        del words["system"]
        config = ChatConfig(run_config(words), system)
        from launch.chat.chat import chat as converse

        raise typer.Exit(converse(config))


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(epilog="Example: sidestage chat --slots 48 --temperature 0.8 --seed 1")(chat)
