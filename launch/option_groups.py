"""Options that go together, said once for every verb that runs a model. Imports nothing heavy.

A group is a function's signature; a verb that ends in `**given` takes groups by `@takes(...)`.
"""

import inspect
from collections.abc import Callable

from compute import policies
from launch.options import (
    ArrangementOption,
    BitsOption,
    ConnectOption,
    DeviceOption,
    DirectIoOption,
    DtypeOption,
    FastOption,
    GroupOption,
    LinkOption,
    LookaheadOption,
    PolicyOption,
    PredictorOption,
    RamOption,
    RepetitionPenaltyOption,
    SeedOption,
    SlotsOption,
    StageOption,
    TemperatureOption,
    ThreadsOption,
    TimeoutOption,
    TopPOption,
    VramOption,
)

Group = Callable[..., None]
Verb = Callable[..., None]


def sampling(
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    repetition_penalty: RepetitionPenaltyOption = None,
    seed: SeedOption = None,
) -> None:
    """How a token is chosen."""


def conversion(bits: BitsOption = None, group: GroupOption = None, fast: FastOption = False) -> None:
    """How experts are quantized."""


def compute(
    dtype: DtypeOption = "auto", threads: ThreadsOption = None, timeout: TimeoutOption = None
) -> None:
    """How the model computes, and how long it waits."""


def cache(
    slots: SlotsOption = None,
    ram: RamOption = None,
    policy: PolicyOption = policies.DEFAULT,
    predictor: PredictorOption = "gate",
    lookahead: LookaheadOption = None,
    direct_io: DirectIoOption = "auto",
) -> None:
    """Which experts are where, which are asked for ahead of need, and how they are read."""


def placement(
    device: DeviceOption = "auto",
    arrangement: ArrangementOption = "auto",
    vram: VramOption = None,
    stage: StageOption = 1,
    link: LinkOption = None,
    connect: ConnectOption = None,
) -> None:
    """Where the model computes, and how experts get there."""


def takes(*groups: Group) -> Callable[[Verb], Verb]:
    """Put the options of `groups` behind a verb's own; it gets them by name, in its `**given`."""

    def extend(verb: Verb) -> Verb:
        own = [p for p in _parameters(verb) if p.kind is not inspect.Parameter.VAR_KEYWORD]
        shared = [parameter for group in groups for parameter in _parameters(group)]
        parameters = [*own, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in shared)]
        verb.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        verb.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return verb

    return extend


def _parameters(function: Callable[..., None]) -> list[inspect.Parameter]:
    return [*inspect.signature(function).parameters.values()]
