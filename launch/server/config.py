"""What `sidestage serve` was asked to do, checked before anything is started.

How the model runs is a RunConfig's business; here is what a server adds.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from launch.config import RunConfig

#: What clients call the shipped model.
SHIPPED_NAME = "sidestage-tiny"
#: ... and a model that only its loader names.
ATTACHED_NAME = "sidestage"


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """`port` 0: a free one; `queue`: requests that may wait; `batch`: requests answered at once.

    Raises ValueError with a sentence.
    """

    run: RunConfig
    host: str
    port: int
    api_key: str | None
    queue: int
    batch: int

    def __post_init__(self) -> None:
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.strip()):
            raise ValueError("--api-key must be some ASCII characters: it travels in a header")
        if self.queue < 0:
            raise ValueError(f"--queue is {self.queue}; it must be 0 (nobody waits) or more")
        if self.batch < 1:
            raise ValueError(f"--batch is {self.batch}; it must be at least 1")

    @property
    def model_name(self) -> str:
        """What clients call the model: its hub id or its folder's name."""
        named = self.run.model
        if named is None:
            return SHIPPED_NAME if self.run.connect is None else ATTACHED_NAME
        folder = Path(named).expanduser()
        return Path(os.path.abspath(folder)).name if folder.exists() else named

    @property
    def notices(self) -> list[str]:
        """What the user should know of these settings."""
        pairs = (
            (
                self.batch > 1,
                f"up to {self.batch} requests share a forward pass: the low-order bits of an answer may then "
                "depend on its neighbours; --batch 1 is reproducible",
            ),
            (
                self.api_key is None and not self._is_loopback,
                f"anybody who reaches {self.host} may ask: --api-key keeps strangers out",
            ),
        )
        return [sentence for applies, sentence in pairs if applies]

    @property
    def _is_loopback(self) -> bool:
        return self.host in ("localhost", "::1") or self.host.startswith("127.")
