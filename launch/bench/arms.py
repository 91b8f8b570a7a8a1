"""Arms by name: which way to run the model, and how far it looks ahead, as in `offload@2`."""

from dataclasses import dataclass

KINDS = ("resident", "offload", "oracle", "transformers", "accelerate")
OURS = ("resident", "offload", "oracle")
STOCK = ("transformers", "accelerate")
#: They have fewer slots than experts, and a lookahead.
OFFLOADED = ("offload", "oracle")


@dataclass(frozen=True, slots=True)
class Arm:
    """`name` as the user wrote it; `lookahead` is 0 for arms that have everything at hand."""

    name: str
    kind: str
    lookahead: int

    @property
    def is_ours(self) -> bool:
        return self.kind in OURS

    @property
    def offloads(self) -> bool:
        return self.kind in OFFLOADED


def arm_of(name: str, lookahead: int) -> Arm:
    """The arm called `name`; `lookahead` is for those that do not say one. Raises ValueError."""
    kind, at, layers = name.partition("@")
    if kind not in KINDS:
        raise ValueError(f"--arms names {name!r}; allowed: {', '.join(KINDS)}")
    if at and kind not in OFFLOADED:
        raise ValueError(f"--arms {name}: {kind} looks nowhere ahead, write it without @")
    if at and not layers.isdecimal():
        raise ValueError(f"--arms {name}: after @ comes a number of layers, as in {kind}@1")
    ahead = int(layers) if at else lookahead
    return Arm(name, kind, ahead if kind in OFFLOADED else 0)
