"""From a request to the tokens that the model continues, checked against its context.

Owns a tokenizer of its own, so that it can read one request while another is answered. Runs in
the compute process; raises Refusal.
"""

from copy import deepcopy
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from launch.chat.reading import tokens_of
from launch.sampling import context_of
from launch.server.messages import Ask
from launch.server.refusals import Refusal

#: Where neither the request, nor the model, nor its context bounds an answer.
_MAX_TOKENS = 1024


@dataclass(slots=True)
class Prompt:
    """A request in tokens, and how many may follow. `is_cancelled` is set from any thread."""

    ask: Ask
    token_ids: list[int]
    max_tokens: int
    is_cancelled: bool = False


class PromptReader:
    """Reads requests for one model."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.context = context_of(model)
        self._vocabulary: int = model.config.get_text_config().vocab_size
        self._own_max_tokens: int | None = model.generation_config.max_new_tokens
        self._tokenizer = deepcopy(tokenizer)

    def read(self, ask: Ask) -> Prompt:
        """Raises Refusal when the prompt is empty, is not the model's, or leaves no room for an answer."""
        field = "prompt" if ask.messages is None else "messages"
        token_ids = self._token_ids(ask)
        if not token_ids:
            raise Refusal(400, f"{field} is empty for this model's tokenizer: say something", param=field)
        if any(not 0 <= token_id < self._vocabulary for token_id in token_ids):
            text = f"prompt holds a token id that is not in the model's vocabulary of {self._vocabulary}"
            raise Refusal(400, text, param=field)
        return Prompt(ask, token_ids, self._room(ask, len(token_ids), field))

    def _token_ids(self, ask: Ask) -> list[int]:
        if isinstance(ask.prompt, list):
            return ask.prompt
        if ask.prompt is not None:
            return list(self._tokenizer(ask.prompt)["input_ids"])
        try:
            return tokens_of(ask.messages or [], self._tokenizer)
        except ValueError as error:
            raise Refusal(400, str(error), param="messages") from error

    def _room(self, ask: Ask, num_tokens: int, field: str) -> int:
        """How many tokens may follow the prompt."""
        if self.context is None:
            return ask.max_tokens or self._own_max_tokens or _MAX_TOKENS
        room = self.context - num_tokens
        wanted = ask.max_tokens or min(self._own_max_tokens or room, room)
        if 0 < wanted <= room:
            return wanted
        asked = f" and max_tokens is {ask.max_tokens}" if ask.max_tokens else ""
        raise Refusal(
            400,
            f"{field} has {num_tokens} tokens{asked}, but the model's context holds {self.context}: "
            f"send a shorter prompt{' or ask for fewer tokens' if asked else ''}",
            param=field,
            code="context_length_exceeded",
        )
