"""How a model reads a conversation: through its own chat template, or as plain text where it has none.

Runs in a compute process, beside the tokenizer.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from launch.chat.history import Message, plain_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokens_of(messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Up to where the answer begins. Raises ValueError, with its words, when the template refuses."""
    if not tokenizer.chat_template:
        return list(tokenizer(plain_text(messages))["input_ids"])
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except Exception as error:
        # A template is the model's own program: whatever it raises is about these messages.
        raise ValueError(f"the model's chat template does not take these messages: {error}") from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
