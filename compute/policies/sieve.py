"""sieve: a hand sweeps from the oldest to the newest and takes the first not used since its last visit.

Rule: SIEVE (Zhang and others, NSDI 2024). The use that brings an expert in does not count.
Reconstructed: an expert in `held` is stepped over and keeps its mark. Asking leaves hand and marks
alone; `on_evict` moves them.
"""

from collections.abc import Container, Iterator, Sequence

from compute.policies.base import CacheShape, FloatArray


class Sieve:
    needs_probs = False

    def __init__(self, shape: CacheShape) -> None:
        #: A ring from each key to the next newer one; `_END` lies between the newest and the oldest.
        self._newer: dict[int, int] = {_END: _END}
        self._older: dict[int, int] = {_END: _END}
        self._hand = _END
        self._is_used: dict[int, bool] = {}
        self._newcomers: set[int] = set()

    # --- observing ---------------------------------------------------------------------------

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        pass

    def on_access(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> None:
        for key in keys:
            if key in self._newcomers:
                self._newcomers.remove(key)
            elif key in self._is_used:
                self._is_used[key] = True

    def on_insert(self, key: int, is_speculative: bool) -> None:
        newest = self._older[_END]
        self._newer[newest], self._older[key] = key, newest
        self._newer[key], self._older[_END] = _END, key
        self._is_used[key] = False
        self._newcomers.add(key)

    def on_evict(self, key: int) -> None:
        if key in self._newcomers:
            self._newcomers.remove(key)  # a prefetch nobody used: the hand has no part in it
        else:
            self._sweep_to(key)
        if self._hand == key:
            self._hand = self._newer[key]
        older, newer = self._older.pop(key), self._newer.pop(key)
        self._newer[older], self._older[newer] = newer, older
        del self._is_used[key]

    # --- asking ------------------------------------------------------------------------------

    def choose_victims(self, count: int, held: Container[int]) -> list[int]:
        victims: list[int] = []
        for is_used in (False, True):
            for key in self._from_hand():
                if len(victims) == count:
                    return victims
                if self._is_used[key] is is_used and key not in held:
                    victims.append(key)
        return victims

    def _from_hand(self) -> Iterator[int]:
        """Every key once, as the hand would meet them."""
        key = self._hand
        for _ in range(len(self._is_used) + 1):
            if key != _END:
                yield key
            key = self._newer[key]

    # --- edges -------------------------------------------------------------------------------

    def _sweep_to(self, key: int) -> None:
        """Unmark what the hand passes on its way to `key`: everybody, if `key` itself was marked."""
        passed = self._from_hand()
        for other in passed:
            if other == key and not self._is_used[key]:
                break
            self._is_used[other] = False
        self._hand = key


_END = -1
