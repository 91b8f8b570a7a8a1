"""s3-fifo: a small queue filters out what is used once, a main queue keeps what is used again.

Rule: S3-FIFO (Yang and others, SOSP 2023): a tenth of the slots for newcomers, a ghost queue of
recent leavers whose return goes to the main queue at once, counts of uses up to 3.
Reconstructed: an expert in `held` is stepped over. Asking leaves the queues alone; `on_evict`
makes the moves that lead to that victim.
"""

from collections import OrderedDict
from collections.abc import Container, Iterator, Sequence

from compute.policies.base import CacheShape, FloatArray

MOST_USES = 3
#: Uses in the small queue that make an expert worth keeping.
USES_TO_STAY = 2


class S3Fifo:
    needs_probs = False

    def __init__(self, shape: CacheShape, small: float = 0.1) -> None:
        if not 0.0 < small < 1.0:
            raise ValueError(f"small {small}, the share of the small queue, must lie between 0 and 1")
        self._small_size = max(1, round(shape.num_slots * small))
        self._ghost_size = max(1, shape.num_slots - self._small_size)
        self._small: OrderedDict[int, None] = OrderedDict()
        self._main: OrderedDict[int, None] = OrderedDict()
        self._ghost: OrderedDict[int, None] = OrderedDict()
        self._uses: dict[int, int] = {}
        self._newcomers: set[int] = set()

    # --- observing ---------------------------------------------------------------------------

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        pass

    def on_access(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> None:
        for key in keys:
            if key in self._newcomers:
                self._newcomers.remove(key)
            elif key in self._uses:
                self._uses[key] = min(self._uses[key] + 1, MOST_USES)

    def on_insert(self, key: int, is_speculative: bool) -> None:
        (self._main if key in self._ghost else self._small)[key] = None
        self._ghost.pop(key, None)
        self._uses[key] = 0
        self._newcomers.add(key)

    def on_evict(self, key: int) -> None:
        if key in self._newcomers:
            self._newcomers.remove(key)  # a prefetch nobody used: no queue has chosen it
        else:
            self._promote_up_to(key)
            if key in self._main:
                self._turn_main_to(key)
        if key in self._small:
            del self._small[key]
            self._remember(key)
        else:
            del self._main[key]
        del self._uses[key]

    # --- asking ------------------------------------------------------------------------------

    def choose_victims(self, count: int, held: Container[int]) -> list[int]:
        victims: list[int] = []
        for key in self._in_turn(held):
            if len(victims) == count:
                break
            victims.append(key)
        return victims

    def _in_turn(self, held: Container[int]) -> Iterator[int]:
        """Who would leave, one after the other: of the small queue while it is too long, then of main."""
        promoted: list[int] = []
        leaving: set[int] = set()
        num_small = len(self._small)
        for key in self._small:
            if num_small < self._small_size:
                break
            if self._uses[key] >= USES_TO_STAY:
                promoted.append(key)
                num_small -= 1
            elif key not in held:
                leaving.add(key)
                num_small -= 1
                yield key
        for num_uses in range(MOST_USES + 1):
            yield from (k for k in self._main if self._uses[k] == num_uses and k not in held)
            if num_uses == 0:
                yield from (k for k in promoted if k not in held)
        staying = (k for k in self._small if k not in leaving and self._uses[k] < USES_TO_STAY)
        yield from (k for k in staying if k not in held)

    # --- edges -------------------------------------------------------------------------------

    def _promote_up_to(self, victim: int) -> None:
        """Move what has earned it from small to main, as far as the search for `victim` went."""
        promoted: list[int] = []
        for key in self._small:
            if key == victim and self._uses[key] < USES_TO_STAY:
                break
            if len(self._small) - len(promoted) < self._small_size:
                break
            if self._uses[key] >= USES_TO_STAY:
                promoted.append(key)
        for key in promoted:
            del self._small[key]
            self._main[key] = None
            self._uses[key] = 0

    def _turn_main_to(self, victim: int) -> None:
        """Give those ahead of `victim` their further rounds, each at the price of a use."""
        for _ in range(self._uses[victim] + 1):
            is_last_round = self._uses[victim] == 0
            turned: list[int] = []
            for key in self._main:
                if key == victim and is_last_round:
                    break
                if self._uses[key] > 0:
                    turned.append(key)
            for key in turned:
                self._uses[key] -= 1
                self._main.move_to_end(key)

    def _remember(self, key: int) -> None:
        self._ghost[key] = None
        if len(self._ghost) > self._ghost_size:
            self._ghost.popitem(last=False)
