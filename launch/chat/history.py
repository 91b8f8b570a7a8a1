"""A conversation so far, and how much of it the model's context can hold. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

#: {"role": "system" | "user" | "assistant", "content": ...}, as chat templates want it.
Message = dict[str, str]


@dataclass(slots=True)
class History:
    """Who said what. `system` stands before all and is never forgotten."""

    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    @property
    def messages(self) -> list[Message]:
        first = [{"role": "system", "content": self.system}] if self.system is not None else []
        return [*first, *self.turns]

    def ask(self, text: str) -> None:
        self.turns.append({"role": "user", "content": text})

    def answer(self, text: str, num_forgotten: int) -> None:
        """The model has answered, and its context had no room for the first `num_forgotten` messages."""
        del self.turns[:num_forgotten]
        self.turns.append({"role": "assistant", "content": text})

    def take_back(self) -> None:
        """The last question had no answer."""
        self.turns.pop()

    def reset(self) -> None:
        self.turns.clear()


def plain_text(messages: Sequence[Message]) -> str:
    """For a model without a chat template: an answer continues its question, a question is a new line."""
    parts = [m["content"] if m["role"] == "assistant" else f"\n{m['content']}" for m in messages]
    return "".join(parts).removeprefix("\n")


@dataclass(frozen=True, slots=True)
class Fitted:
    """What of a conversation the context holds. `num_forgotten` counts messages."""

    messages: list[Message]
    num_forgotten: int
    prompt_tokens: int
    max_new_tokens: int


def fit(
    messages: Sequence[Message],
    count: Callable[[list[Message]], int],
    context: int | None,
    max_new_tokens: int,
) -> Fitted:
    """Forget the oldest question and answer, again and again, until the rest and an answer have room.

    Beside the last question alone the answer may become shorter than `max_new_tokens`.
    Raises ValueError when that question fills the context by itself.
    """
    head = [message for message in messages[:1] if message["role"] == "system"]
    turns = list(messages[len(head) :])
    num_forgotten = 0
    while True:
        num_tokens = count([*head, *turns])
        if num_tokens == 0:
            raise ValueError("this message is empty for the model's tokenizer: write another one")
        if context is None or num_tokens + max_new_tokens <= context:
            break
        if len(turns) > 2:
            del turns[:2]
            num_forgotten += 2
            continue
        max_new_tokens = context - num_tokens
        if max_new_tokens < 1:
            raise ValueError(
                f"this message makes a prompt of {num_tokens} tokens, but the model's context holds "
                f"{context}: write a shorter one"
            )
        break
    return Fitted([*head, *turns], num_forgotten, num_tokens, max_new_tokens)
