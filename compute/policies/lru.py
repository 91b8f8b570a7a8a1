"""lru: the least recently used leaves first.

Rule: mixtral-offloading (Eliseev and Mazur, arXiv 2312.17238). Keys of one layer-step count as used in
ascending order. A prefetch counts as a use until its real one; until then it is on probation
anyway and never asked about.
"""

from collections import OrderedDict
from collections.abc import Container, Sequence

from compute.policies.base import CacheShape, FloatArray


class Lru:
    needs_probs = False

    def __init__(self, shape: CacheShape) -> None:
        self._order: OrderedDict[int, None] = OrderedDict()

    # --- observing ---------------------------------------------------------------------------

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        pass

    def on_access(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> None:
        order = self._order
        touch = order.move_to_end
        for key in keys:
            if key in order:
                touch(key)

    def on_insert(self, key: int, is_speculative: bool) -> None:
        self._order[key] = None

    def on_evict(self, key: int) -> None:
        del self._order[key]

    # --- asking ------------------------------------------------------------------------------

    def choose_victims(self, count: int, held: Container[int]) -> list[int]:
        victims: list[int] = []
        for key in self._order:
            if key not in held:
                victims.append(key)
                if len(victims) == count:
                    break
        return victims
