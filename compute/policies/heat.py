"""heat: the coldest leaves first, but only for an expert that is clearly hotter, and not too soon.

Rule: the decayed heat with hysteresis of ftllm and of llama.cpp's forks: a use adds 1, heat halves every
`half_life` passes; a newcomer is kept (else served without admission) only if its heat exceeds the
victim's times 1 + `margin`; a resident stays for at least `residence` passes.
Reconstructed: the constants, and that a free slot is always filled.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass

from compute.policies.base import CacheShape
from compute.policies.lfu import Lfu


class Heat(Lfu):
    def __init__(
        self, shape: CacheShape, half_life: float = 16.0, margin: float = 0.1, residence: int = 1
    ) -> None:
        if not (half_life > 0.0 and margin >= 0.0 and residence >= 0):
            raise ValueError("half_life must be above 0, margin and residence at least 0")
        super().__init__(shape, decay=0.5 ** (1.0 / half_life))
        self._margin = margin
        self._residence = residence
        self._pass = 0
        self._since: dict[int, int] = {}

    # --- observing ---------------------------------------------------------------------------

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        super().begin_pass(num_tokens, is_new_sequence)
        self._pass += 1

    def on_insert(self, key: int, is_speculative: bool) -> None:
        super().on_insert(key, is_speculative)
        self._since[key] = self._pass

    def on_evict(self, key: int) -> None:
        super().on_evict(key)
        del self._since[key]

    # --- asking ------------------------------------------------------------------------------

    def choose_admitted(self, missing: Sequence[int], num_free: int, held: Container[int]) -> list[int]:
        hottest = sorted(missing, key=self._counts.__getitem__, reverse=True)
        leavers = self.choose_victims(len(missing) - num_free, held)
        admitted = hottest[:num_free]
        for newcomer, leaver in zip(hottest[num_free:], leavers, strict=False):
            heat = self._counts[newcomer] + self._unit
            if heat <= self._counts[leaver] * (1.0 + self._margin):
                break
            admitted.append(newcomer)
        return admitted

    def choose_victims(self, count: int, held: Container[int]) -> list[int]:
        settled_since = self._pass - self._residence
        return self._heap.lowest(count, _Fixed(held, self._since, settled_since))


@dataclass(frozen=True, slots=True)
class _Fixed:
    """Keys that must stay: held by the caller, or not here for long."""

    held: Container[int]
    since: dict[int, int]
    settled_since: int

    def __contains__(self, key: object) -> bool:
        assert isinstance(key, int)
        return self.since[key] > self.settled_since or key in self.held
