"""ModelledLink: when a replay's fetches have come, by a simple rule. Pure arithmetic on seconds.

What a layer-step misses comes first, and the step waits for all of it; then the layer computes,
and meanwhile guesses flow, the nearest deadline first. A guess that is wanted before it has come
whole is late: the step waits for the rest of it. A guess that is dropped leaves the link at once.
Without a link every guess is there before the next layer-step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compute.timing_model import Link


#: A cache's number and a slot of it.
Place = tuple[int, int]


@dataclass(slots=True)
class ModelledLink:
    """`total_s` and `stall_s` grow with every step; both stay 0 without a link."""

    blob_s: float
    layer_s: float
    total_s: float = 0.0
    stall_s: float = 0.0
    #: place -> (deadline, seconds that are left of it), in the order in which they were asked for
    _coming: dict[Place, tuple[int, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, link: Link | None) -> ModelledLink:
        return cls(0.0, 0.0) if link is None else cls(link.blob_s, link.layer_s)

    def ask(self, place: Place, deadline: int) -> None:
        """A guess is wanted for layer-step `deadline`."""
        self._coming[place] = deadline, self.blob_s

    def drop(self, place: Place) -> None:
        """A guess on its way is not wanted any more."""
        del self._coming[place]

    def wait(self, num_missing: int, late: Iterable[Place]) -> None:
        """A layer-step waits for experts that nobody had asked for, and for the rest of the late ones."""
        left_s = num_missing * self.blob_s + sum(self._coming.pop(place)[1] for place in late)
        self.stall_s += left_s
        self.total_s += left_s

    def compute(self) -> list[Place]:
        """A layer computes. Returns the guesses that have come whole by its end."""
        self.total_s += self.layer_s
        idle_s = self.layer_s
        landed = []
        for place in sorted(self._coming, key=lambda place: self._coming[place][0]):
            deadline, left_s = self._coming[place]
            if left_s > idle_s:
                self._coming[place] = deadline, left_s - idle_s
                break
            idle_s -= left_s
            del self._coming[place]
            landed.append(place)
        return landed
