"""least-stale: what an earlier pass left behind goes before what this pass has touched.

Rule: SpecMD's Least-Stale (arXiv 2602.03921). A pass makes all residents stale; a use or an insert
(a prefetch's too) makes fresh; the oldest stale leaves first, else the oldest fresh.
Reconstructed: "oldest" means since the last use or insert. So it equals lru where nothing is
prefetched, and here even then, as unused prefetches are on probation and never asked about.
"""

from collections import OrderedDict
from collections.abc import Container, Sequence
from itertools import chain

from compute.policies.base import CacheShape, FloatArray


class LeastStale:
    needs_probs = False

    def __init__(self, shape: CacheShape) -> None:
        self._stale: OrderedDict[int, None] = OrderedDict()
        self._fresh: OrderedDict[int, None] = OrderedDict()

    # --- observing ---------------------------------------------------------------------------

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        self._stale.update(self._fresh)
        self._fresh.clear()

    def on_access(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> None:
        for key in keys:
            if key in self._fresh:
                self._fresh.move_to_end(key)
            elif key in self._stale:
                del self._stale[key]
                self._fresh[key] = None

    def on_insert(self, key: int, is_speculative: bool) -> None:
        self._fresh[key] = None

    def on_evict(self, key: int) -> None:
        del (self._fresh if key in self._fresh else self._stale)[key]

    # --- asking ------------------------------------------------------------------------------

    def choose_victims(self, count: int, held: Container[int]) -> list[int]:
        victims: list[int] = []
        for key in chain(self._stale, self._fresh):
            if len(victims) == count:
                break
            if key not in held:
                victims.append(key)
        return victims
