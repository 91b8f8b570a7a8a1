"""ArmJob: what one arm's process is told, as one line of JSON on its stdin."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class ArmJob:
    """`arm` is its name, `kind` what it is. `folder`: a store for our arms, a checkpoint for stock ones.

    `device` is "cpu" or "cuda". Rates in bytes a second. `direct_io`: whether a loader reads past the
    page cache. `cpu_expert_bytes`: what the arm accelerate may keep of the experts; the rest stays on disk.
    """

    arm: str
    kind: str
    folder: str
    slots: int
    frames: int
    arrangement: str
    lookahead: int
    policy: str
    link: int | None
    rate: int | None
    cpu_expert_bytes: int
    threads: int | None
    routing: str | None
    gate_recall: float
    seed: int
    pp: int
    tg: int
    num_segments: int
    timeout: float | None
    direct_io: bool = False
    device: str = "cpu"
    stage: int = 1

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ArmJob":
        return cls(**json.loads(text))
