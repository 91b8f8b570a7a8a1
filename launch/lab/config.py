"""What the laboratory's commands were asked to do, checked before any work. Names as on the command line."""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from compute import predictors
from compute.policies import KNOWN, OFFLINE, find
from launch.config import RunConfig
from launch.output import check_place

PASSES = ("token", "window", "split")
SCOPES = ("global", "layer")
PICTURES = (".png", ".svg", ".pdf")
DEFAULT_CAPACITIES = (0.25, 0.5)


@dataclass(frozen=True, slots=True)
class RecordConfig:
    """One recording. `run` has the settings that `sidestage run` has too. Raises ValueError."""

    run: RunConfig
    out: str
    prompts: str | None = None
    text: str | None = None
    passes: str = "token"
    window: int | None = None
    tokens: int | None = None
    predicted: int = 2
    probs: bool = False

    def __post_init__(self) -> None:
        if (self.prompts is None) == (self.text is None):
            raise ValueError("what shall the model read? Pass one of --prompts FILE and --text FILE")
        if self.passes not in PASSES:
            raise ValueError(f"--passes is {self.passes!r}; allowed: {', '.join(PASSES)}")
        for name, value in (("--window", self.window), ("--tokens", self.tokens)):
            _check_at_least_1(name, value)
            if value is not None and self.text is None:
                raise ValueError(f"{name} belongs to --text; prompts are short: leave it out")
        if self.run.stage > 1:
            raise ValueError(
                f"--stage is {self.run.stage}, a recording watches every layer from the host: leave it out"
            )
        if self.predicted < 0:
            raise ValueError(f"--predicted is {self.predicted}; it must be 0 (nothing is kept) or more")
        if self.out == "-":
            raise ValueError("--out writes a file: name one, such as trace.npz")
        check_place("--out", self.out)
        check_place("--json", self.run.json)


@dataclass(frozen=True, slots=True)
class SimulateConfig:
    """One comparison. Sizes in bytes, `link` in bytes per second. Raises ValueError."""

    traces: tuple[str, ...]
    capacities: tuple[float, ...] = ()
    scope: str = "global"
    policy: str = "all"
    predictor: str = "none"
    lookahead: int = 0
    tokens: int | None = None
    link: int | None = None
    blob_bytes: int | None = None
    layer_us: float | None = None
    advise: bool = False
    ram: int | None = None
    jobs: int | None = None
    json: str | None = None
    plot: str | None = None

    def __post_init__(self) -> None:
        for capacity in self.capacities:
            if not 0 < capacity <= 1:
                raise ValueError(
                    f"--capacity is {capacity:g}; it is a fraction of the experts, above 0 and at most 1"
                )
        if self.scope not in SCOPES:
            raise ValueError(f"--scope is {self.scope!r}; allowed: {', '.join(SCOPES)}")
        for policy in self.policies:
            find(policy)
        _check_at_least_1("--tokens", self.tokens)
        _check_at_least_1("--jobs", self.jobs)
        self._check_foresight()
        self._check_link()
        self._check_advice()
        check_place("--json", self.json)
        check_picture(self.plot)

    @property
    def policies(self) -> tuple[str, ...]:
        """Every policy that is asked for, once."""
        asked = [name.strip() for name in self.policy.split(",")]
        return tuple(dict.fromkeys(n for name in asked for n in (KNOWN if name == "all" else (name,))))

    @property
    def num_jobs(self) -> int:
        return self.jobs or len(os.sched_getaffinity(0))

    def _check_foresight(self) -> None:
        try:
            is_none = predictors.parse(self.predictor).is_none
        except ValueError as error:
            raise ValueError(f"--predictor {self.predictor}: {error}") from None
        if self.lookahead < 0:
            raise ValueError(f"--lookahead is {self.lookahead}; it must be 0 (off) or more")
        if is_none and self.lookahead > 0:
            raise ValueError(f"--lookahead {self.lookahead} needs a predictor: name one with --predictor")

    def _check_link(self) -> None:
        if self.link is not None and self.layer_us is None:
            raise ValueError(
                "--link needs --layer-us, the microseconds that one MoE layer computes: what the link brings "
                "is weighed against it"
            )
        if self.link is None and self.layer_us is not None:
            raise ValueError("--layer-us belongs to --link RATE: pass both, or none")
        if self.layer_us is not None and not 0 <= self.layer_us < float("inf"):
            raise ValueError(f"--layer-us is {self.layer_us:g}; it must be 0 or more")
        if self.blob_bytes == 0:
            raise ValueError("--blob-bytes is 0; write the size of one expert, like 3.5MB")

    def _check_advice(self) -> None:
        if self.ram is not None and not self.advise:
            raise ValueError("--ram belongs to --advise; without it say how much memory by --capacity")
        if self.ram is not None and self.capacities:
            raise ValueError("--ram and --capacity both say how many experts have a slot: pass one of them")
        if self.advise and OFFLINE.issuperset(self.policies):
            raise ValueError(
                f"--advise names a policy for a run, and {', '.join(self.policies)} cannot be had there: "
                "name others too, or --policy all"
            )


def check_picture(place: str | None) -> None:
    """Raise ValueError now if nothing could be drawn there later."""
    if place is None:
        return
    if Path(place).suffix not in PICTURES:
        raise ValueError(f"--plot {place}: the name must end in {', '.join(PICTURES)}")
    check_place("--plot", place)
    if find_spec("matplotlib") is None:
        raise ValueError(
            "--plot draws with matplotlib, which is not installed: pip install 'sidestage[plot]'"
        )


def _check_at_least_1(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")
