"""What `sidestage chat` was asked to do, checked before anything is started."""

from dataclasses import dataclass

from launch.config import RunConfig
from launch.output import check_place


@dataclass(frozen=True, slots=True)
class ChatConfig:
    """`run` has the settings that `sidestage run` has too. Raises ValueError with a sentence."""

    run: RunConfig
    system: str | None = None

    def __post_init__(self) -> None:
        check_place("--json", self.run.json)
        if self.system is not None and not self.system.strip():
            raise ValueError("--system is empty: write what the model shall keep to, or leave it out")
