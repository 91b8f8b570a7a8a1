"""arc: a list of what was used once and one of what was used again, whose shares adapt.

Rule: ARC (Megiddo and Modha, FAST 2003). Ghosts of either list's leavers tell which was too short.
Reconstructed: the target share adapts when the returning expert is inserted, after the victims of
its layer-step were chosen, as victims are asked for without saying for whom.
"""

from collections import OrderedDict
from collections.abc import Container, Iterator, Sequence

from compute.policies.base import CacheShape, FloatArray

Keys = OrderedDict[int, None]


class Arc:
    needs_probs = False

    def __init__(self, shape: CacheShape) -> None:
        self._num_slots = shape.num_slots
        self._once_target = 0.0
        self._once: Keys = OrderedDict()
        self._again: Keys = OrderedDict()
        self._once_ghosts: Keys = OrderedDict()
        self._again_ghosts: Keys = OrderedDict()
        self._newcomers: set[int] = set()

    # --- observing ---------------------------------------------------------------------------

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        pass

    def on_access(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> None:
        for key in keys:
            if key in self._newcomers:
                self._newcomers.remove(key)
            elif key in self._once:
                del self._once[key]
                self._again[key] = None
            elif key in self._again:
                self._again.move_to_end(key)

    def on_insert(self, key: int, is_speculative: bool) -> None:
        self._newcomers.add(key)
        if key in self._once_ghosts:
            self._adapt(max(1.0, len(self._again_ghosts) / len(self._once_ghosts)))
            del self._once_ghosts[key]
            self._again[key] = None
        elif key in self._again_ghosts:
            self._adapt(-max(1.0, len(self._once_ghosts) / len(self._again_ghosts)))
            del self._again_ghosts[key]
            self._again[key] = None
        else:
            self._once[key] = None

    def on_evict(self, key: int) -> None:
        self._newcomers.discard(key)
        is_once = key in self._once
        del (self._once if is_once else self._again)[key]
        (self._once_ghosts if is_once else self._again_ghosts)[key] = None
        if len(self._once) + len(self._once_ghosts) > self._num_slots:
            self._once_ghosts.popitem(last=False)
        elif len(self._once_ghosts) + len(self._again_ghosts) > self._num_slots:
            self._again_ghosts.popitem(last=False)

    # --- asking ------------------------------------------------------------------------------

    def choose_victims(self, count: int, held: Container[int]) -> list[int]:
        once = (key for key in self._once if key not in held)
        again = (key for key in self._again if key not in held)
        victims: list[int] = []
        num_once = len(self._once)
        while len(victims) < count:
            is_once = num_once > 0 and num_once > self._once_target
            victim = _first(once, again) if is_once else _first(again, once)
            if victim is None:
                break
            num_once -= victim in self._once
            victims.append(victim)
        return victims

    # --- edges -------------------------------------------------------------------------------

    def _adapt(self, change: float) -> None:
        self._once_target = min(max(self._once_target + change, 0.0), float(self._num_slots))


def _first(these: Iterator[int], else_those: Iterator[int]) -> int | None:
    victim = next(these, None)
    return next(else_those, None) if victim is None else victim
