"""Arms by name: which way to run the model, how far it looks ahead, and in which stage: `offload@2:3`."""

from dataclasses import dataclass

from compute.settings import STAGES

KINDS = ("resident", "offload", "oracle", "transformers", "accelerate")
OURS = ("resident", "offload", "oracle")
STOCK = ("transformers", "accelerate")
#: They have fewer slots than experts, and a lookahead.
OFFLOADED = ("offload", "oracle")


@dataclass(frozen=True, slots=True)
class Arm:
    """`name` as the user wrote it; `lookahead` is 0 for arms that have everything at hand.

    `stage`: how far a CUDA device decodes without the host, 1 where it does not.
    """

    name: str
    kind: str
    lookahead: int
    stage: int = 1

    @property
    def is_ours(self) -> bool:
        return self.kind in OURS

    @property
    def offloads(self) -> bool:
        return self.kind in OFFLOADED


def arm_of(name: str, lookahead: int) -> Arm:
    """The arm called `name`; `lookahead` is for those that do not say one. Raises ValueError."""
    way, colon, stage = name.partition(":")
    kind, at, layers = way.partition("@")
    if kind not in KINDS:
        raise ValueError(f"--arms names {name!r}; allowed: {', '.join(KINDS)}")
    if at and kind not in OFFLOADED:
        raise ValueError(f"--arms {name}: {kind} looks nowhere ahead, write it without @")
    if at and not layers.isdecimal():
        raise ValueError(f"--arms {name}: after @ comes a number of layers, as in {kind}@1")
    if colon and kind in STOCK:
        raise ValueError(f"--arms {name}: {kind} is not ours and has no stages, write it without :")
    if colon and stage not in map(str, STAGES):
        raise ValueError(f"--arms {name}: after : comes a stage of --device cuda, {_STAGES}")
    ahead = int(layers) if at else lookahead
    return Arm(name, kind, ahead if kind in OFFLOADED else 0, int(stage) if colon else 1)


_STAGES = ", ".join(map(str, STAGES))
