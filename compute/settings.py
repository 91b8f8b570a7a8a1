"""What `offload` was asked for, checked before anything is opened.

Knows the rules between the settings, named as on the command line; knows no model and no machine.
"""

from dataclasses import dataclass

from compute import predictors
from compute.cache_folder import Quantization
from protocol.folder import refuse_network
from protocol.units import parse_rate, parse_size

Size = int | str

#: Whether a loader reads past the page cache; loader.direct_io decides what auto means.
DIRECT_IO = ("auto", "on", "off")

#: How far a CUDA device decodes without the host: docs/gpu.md.
STAGES = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes in bytes, `link` in bytes per second. None: not said. Raises ValueError with a sentence."""

    quantization: Quantization
    ram: int | None
    slots: int | None
    vram: int | None
    arrangement: str
    link: int | None
    policy: str
    predictor: str
    lookahead: int
    dtype: str
    device: str
    threads: int | None
    connect: str | None
    direct_io: str = "auto"
    stage: int = 1

    def __post_init__(self) -> None:
        self._check_speculation()
        self._check_memory()
        self._check_stage()
        if self.link is not None and self.arrangement != "emulated":
            raise ValueError(
                f"--link belongs to --arrangement emulated, not to {self.arrangement}: "
                f"leave it out, or choose emulated"
            )
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"--threads is {self.threads}; it must be at least 1")

    def _check_speculation(self) -> None:
        try:
            is_none = predictors.parse(self.predictor).is_none
        except ValueError as error:
            raise ValueError(f"--predictor: {error}") from None
        if self.lookahead < 0:
            raise ValueError(f"--lookahead is {self.lookahead}; it must be 0 (off) or more")
        if is_none and self.lookahead > 0:
            raise ValueError(
                f"--lookahead {self.lookahead} needs a predictor: "
                f"leave --predictor none out, or pass --lookahead 0"
            )

    def _check_stage(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"--stage is {self.stage}; allowed: {', '.join(map(str, STAGES))}")
        if self.stage == 1:
            return
        is_pinned = self.arrangement in ("auto", "pinned")
        if not is_pinned or self.device == "cpu":
            lack = f"--arrangement is {self.arrangement}" if not is_pinned else "--device is cpu"
            raise ValueError(
                f"--stage {self.stage} lets a CUDA device find its experts by itself, for which each has a "
                f"page-locked frame (--arrangement pinned), and {lack}: leave --stage out"
            )

    def _check_memory(self) -> None:
        if self.vram is not None and self.slots is not None:
            raise ValueError("--slots and --vram both say how many experts are resident: pass one of them")
        if self.vram is not None and (self.device == "cpu" or self.arrangement in ("direct", "emulated")):
            raise ValueError(
                "--vram belongs to the arrangements with a CUDA device (staged, pinned): pass --slots instead"
            )
        if self.connect is not None:
            refuse_network(self.connect)
        if self.direct_io not in DIRECT_IO:
            raise ValueError(f"--direct-io is {self.direct_io!r}; allowed: {', '.join(DIRECT_IO)}")
        if self.direct_io != "auto" and self.connect is not None:
            raise ValueError(
                "--direct-io tells a loader that is started how to read; with --connect it knows already"
            )
        if self.ram is not None and self.connect is not None:
            raise ValueError(
                "--ram sizes the arena of a loader that is started; with --connect it has its own"
            )


def layers_ahead(predictor: str, lookahead: int | None) -> int:
    """The lookahead that applies when it was not said: one layer with a predictor, else none."""
    if lookahead is not None:
        return lookahead
    return 0 if predictor == predictors.NONE else 1


def size_of(name: str, size: Size | None) -> int | None:
    """Bytes of a SIZE. Raises ValueError naming the setting."""
    try:
        return None if size is None else parse_size(size)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def rate_of(name: str, rate: Size | None) -> int | None:
    """Bytes per second of a RATE. Raises ValueError naming the setting."""
    if isinstance(rate, int):
        rate = f"{rate}/s"
    try:
        return None if rate is None else parse_rate(rate)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
