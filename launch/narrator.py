"""Listens to `generate`: when each token came, and its text to whoever reads it.

Owns the clock of a generation (time to first token, decode rate) and the way to stop it early.
Imported in the compute process only.
"""

import time
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase, TextStreamer


class Listener(Protocol):
    """Who reads the text: a file, or what is like one. Raises BrokenPipeError when it has gone."""

    def write(self, text: str, /) -> int: ...

    def flush(self) -> None: ...


class Narrator(TextStreamer):  # type: ignore[misc]
    """A streamer for one sequence. `text` None: nothing is written, times are still taken."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: Listener | None) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.wants_to_stop = False
        self._text = text
        self._started_s = time.perf_counter()
        self._came_s: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Called by generate: once with the prompt [1, n], then with each token [1]."""
        if not self.next_tokens_are_prompt:
            self._came_s.append(time.perf_counter())
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called with whole words. A reader who has gone (`| head`) ends the generation."""
        if self._text is None:
            return
        try:
            self._text.write(text + "\n" if stream_end else text)
            self._text.flush()
        except BrokenPipeError:
            self._text = None
            self.wants_to_stop = True

    def stops(self, token_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        """A stopping criterion for generate: bool [batch]."""
        return torch.full((token_ids.shape[0],), self.wants_to_stop, device=token_ids.device)

    @property
    def ttft_s(self) -> float | None:
        """Seconds from the prompt's handing over to the first token."""
        return self._came_s[0] - self._started_s if self._came_s else None

    @property
    def lasted_s(self) -> float:
        """Seconds from the prompt's handing over to the last token."""
        return self._came_s[-1] - self._started_s if self._came_s else 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """Decode only: the first token is prefill's. None with fewer than two tokens."""
        if len(self._came_s) < 2:
            return None
        return (len(self._came_s) - 1) / (self._came_s[-1] - self._came_s[0])
