"""From token ids to text that may be shown: whole characters, and nothing of a stop string.

Pure: it is given the function that decodes. What is released, put together, is what decoding the
whole answer gives, up to the first stop string.
"""

from collections.abc import Callable, Sequence

_HALF_A_CHARACTER = "\ufffd"


class TextStream:
    """The text of one answer as it grows."""

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str]) -> None:
        self.is_stopped = False
        self._decode = decode
        self._stop = stop
        self._token_ids: list[int] = []
        # The text of the ids before `_read` is out; it is decoded again from `_context` on, because
        # a token's text may depend on its neighbour.
        self._context = self._read = 0
        self._held_back = ""

    def push(self, token_id: int) -> str:
        """Take in one more token; what of the text can be shown now."""
        self._token_ids.append(token_id)
        return self._release(self._new_text(is_last=False))

    def finish(self) -> str:
        """What had been held back, once no token follows."""
        text = self._release(self._new_text(is_last=True)) + self._held_back
        self._held_back = ""
        return text

    def _new_text(self, is_last: bool) -> str:
        shown = self._decode(self._token_ids[self._context : self._read])
        known = self._decode(self._token_ids[self._context :])
        if known.endswith(_HALF_A_CHARACTER) and not is_last:
            return ""
        self._context, self._read = self._read, len(self._token_ids)
        return known[len(shown) :]

    def _release(self, text: str) -> str:
        """What of the text held back and of `text` can be no part of a stop string."""
        if self.is_stopped:
            return ""
        text = self._held_back + text
        starts = [start for stop in self._stop if (start := text.find(stop)) >= 0]
        if starts:
            self.is_stopped, self._held_back = True, ""
            return text[: min(starts)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held_back = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
