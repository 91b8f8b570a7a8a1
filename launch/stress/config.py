"""What `sidestage stress` was asked to do, checked. Imports nothing heavy."""

from dataclasses import dataclass
from enum import StrEnum

from launch.output import check_place

MAX_CLIENTS = 32


class FaultKind(StrEnum):
    """What can be made to go wrong."""

    KILL_LOADER = "kill-loader"
    STOP_LOADER = "stop-loader"
    KILL_CLIENT = "kill-client"
    SLOW_DISK = "slow-disk"
    CORRUPT_BLOB = "corrupt-blob"
    TRUNCATED_STORE = "truncated-store"
    FULL_MEMORY = "full-memory"
    DROP_MESSAGE = "drop-message"
    GARBAGE_MESSAGE = "garbage-message"


@dataclass(frozen=True, slots=True)
class StressConfig:
    """`link`: bytes per second of the emulated link. Raises ValueError with a sentence."""

    seconds: float = 10.0
    clients: int = 2
    arrangement: str = "emulated"
    link: int | None = 40_000_000
    faults: tuple[FaultKind, ...] = ()
    seed: int = 0
    json: str | None = None
    plot: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 7 * 86400:
            raise ValueError(f"--seconds {self.seconds:g}: more than 0 and at most a week is allowed")
        if not 1 <= self.clients <= MAX_CLIENTS:
            raise ValueError(f"--clients {self.clients}: 1 to {MAX_CLIENTS} are allowed")
        if self.arrangement == "pinned":
            raise ValueError(
                "--arrangement pinned needs a CUDA device, and there is none that this version can drive "
                "under stress: choose emulated or direct"
            )
        if self.arrangement not in ("emulated", "direct"):
            raise ValueError(f"--arrangement {self.arrangement}: choose emulated, direct or pinned")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: 0 or more is allowed")
        check_place("--json", self.json)
        check_place("--plot", self.plot)


def parse_faults(text: str) -> tuple[FaultKind, ...]:
    """`all`, `none`, or names with commas between them. Raises ValueError naming the known ones."""
    if text == "all":
        return tuple(FaultKind)
    if text == "none":
        return ()
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in list(FaultKind):
            raise ValueError(f"--faults {name}: choose all, none, or among {', '.join(FaultKind)}")
    return tuple(dict.fromkeys(FaultKind(name) for name in names))
