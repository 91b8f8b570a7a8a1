"""What one client of a stress run is told, on its command line."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class ClientJob:
    """What one client of a stress run does."""

    endpoint: str
    store: str
    tally: str
    arrangement: str
    link: int | None
    slots: int
    quota: int
    lookahead: int
    compute_s: float
    seed: int
    timeout_s: float

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ClientJob":
        return cls(**json.loads(text))
