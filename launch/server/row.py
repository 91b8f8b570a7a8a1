"""One answer in the making: a row of a batch, from its prompt to its end.

Owns the answer's sampler and text, and tells the front of each token. Runs in the compute process.
"""

from collections.abc import Callable, Set

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from launch.server.messages import Began, Ended, Event, Piece, Scores
from launch.server.prompts import Prompt
from launch.server.sampler import Sampler
from launch.server.text_stream import TextStream


class Row:
    """Made when the request's turn has come. `end_ids` are the tokens that end an answer."""

    def __init__(
        self,
        prompt: Prompt,
        tokenizer: PreTrainedTokenizerBase,
        own: GenerationConfig,
        end_ids: Set[int],
        device: torch.device,
        tell: Callable[[Event], None],
    ) -> None:
        self.prompt = prompt
        self.has_ended = False
        self._num_new = 0
        self._end_ids = end_ids
        self._tell = tell
        self._decode: Callable[[list[int]], str] = tokenizer.decode
        self._sampler = Sampler(prompt.ask, own, device)
        self._text = TextStream(
            lambda token_ids: tokenizer.decode(token_ids, skip_special_tokens=True), prompt.ask.stop
        )

    @property
    def number(self) -> int:
        return self.prompt.ask.number

    def begin(self) -> None:
        """Its turn has come."""
        self._tell(Began(self.number, len(self.prompt.token_ids)))

    def advance(self, token_ids: torch.Tensor, logits: torch.Tensor) -> int:
        """Choose the token after `token_ids` [1, n] from `logits` [1, vocabulary], and tell of it."""
        token_id = self._sampler.choose(token_ids, logits)
        self._num_new += 1
        if token_id in self._end_ids:
            self.end("stop")
            return token_id
        text = self._text.push(token_id)
        self._tell(Piece(self.number, text, self._scores(token_id, logits)))
        if self._text.is_stopped:
            self.end("stop")
        elif self._num_new >= self.prompt.max_tokens:
            self.end("length")
        return token_id

    def end(self, reason: str) -> None:
        """Tell that nothing more will come."""
        self.has_ended = True
        num_prompt = len(self.prompt.token_ids)
        self._tell(Ended(self.number, reason, self._text.finish(), num_prompt, self._num_new))

    def _scores(self, token_id: int, logits: torch.Tensor) -> Scores | None:
        """Of the model's own distribution, before temperature and penalties."""
        num_top = self.prompt.ask.top_logprobs
        if num_top is None:
            return None
        log_probabilities = torch.log_softmax(logits[0], dim=-1)
        token_ids = [token_id, *torch.topk(log_probabilities, num_top).indices.tolist()]
        return [(self._decode([one]), float(log_probabilities[one])) for one in token_ids]
