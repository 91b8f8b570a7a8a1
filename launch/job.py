"""What the supervisor asks of the compute process, as JSON between the two.

Knows the words only: no model, no torch. Everything is decided when a Job is made.
"""

import json
from dataclasses import asdict, dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt to continue. `store` "" is the one that the loader at `endpoint` serves.

    `temperature`, `top_p`, `repetition_penalty` None: the model's own. `bits`, `group` and `fast`
    are what the store must be. `slots` None: what the loader's arena allows. `link` is bytes per
    second. `timeline`: file for this process's spans.
    """

    store: str
    endpoint: str
    prompt: str
    max_new_tokens: int
    temperature: float | None
    top_p: float | None
    repetition_penalty: float | None
    seed: int
    device: str
    dtype: str
    threads: int | None
    bits: str | None
    group: int | None
    fast: bool
    arrangement: str
    slots: int | None
    vram: int | None
    stage: int
    policy: str
    predictor: str
    lookahead: int
    link: int | None
    timeout: float | None
    streams: bool
    timeline: str | None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`; both ends are of one version, so anything else is a TypeError."""
        return cls(**json.loads(text))
