"""What a loader's service needs to know, checked."""

from dataclasses import dataclass
from pathlib import Path

from loader.direct_io import check_choice


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What a loader needs to know.

    `arena_fd` stays the caller's; `folder` is made when missing and removed at the end; `rate`
    (bytes per second) states a slow disk; `direct_io` is one of loader.direct_io's choices; `verify`
    False skips checksums; `lifeline_fd` is the pipe whose end means that the parent has died;
    `faults` is a stress run's board.
    """

    store: Path
    arena_fd: int
    folder: Path
    threads: int = 2
    rate: int | None = None
    direct_io: str = "auto"
    verify: bool = True
    timeline: Path | None = None
    lifeline_fd: int | None = None
    faults: Path | None = None

    def __post_init__(self) -> None:
        check_choice(self.direct_io)
        if not 1 <= self.threads <= 64:
            raise ValueError(f"{self.threads} reader threads; 1 to 64 are allowed")
        if self.rate is not None and self.rate <= 0:
            raise ValueError(f"a rate of {self.rate} bytes per second; it must be above zero")
