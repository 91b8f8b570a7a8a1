"""What the model has read of a conversation and still holds, so that no message is read twice.

Owns the cache of the last answer and the tokens in it. Knows no messages and no templates.
"""

from collections.abc import Sequence

from transformers import Cache
from transformers.cache_utils import DynamicLayer


class Recall:
    """The cache of the last answer, if it is of use for the next question."""

    def __init__(self) -> None:
        self._cache: Cache | None = None
        self._token_ids: list[int] = []

    def take(self, token_ids: Sequence[int]) -> Cache | None:
        """A cache that holds the beginning of `token_ids`, all of them but the last at most; or None.

        It is gone from here until it is kept again: what fails in between leaves nothing half-read.
        """
        cache, self._cache = self._cache, None
        shared = min(_shared(self._token_ids, token_ids), len(token_ids) - 1)
        if cache is None or shared < 1:
            return None
        if shared < len(self._token_ids):
            if not all(type(layer) is DynamicLayer for layer in cache.layers):
                return None  # a window or a running state cannot be taken back
            cache.crop(shared - len(self._token_ids))  # negative: how many to take back
        return cache

    def keep(self, cache: Cache | None, token_ids: Sequence[int]) -> None:
        """`cache` has read the beginning of `token_ids`; one with running states counts none, and goes."""
        is_known = cache is not None and all(isinstance(layer, DynamicLayer) for layer in cache.layers)
        self._cache = cache if is_known else None
        self._token_ids = list(token_ids[: self._cache.get_seq_length()]) if self._cache is not None else []

    def forget(self) -> None:
        self.keep(None, ())


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for number, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return number
    return min(len(left), len(right))
