"""What clients read: answers in OpenAI's shapes, whole or in chunks. Pure.

One Shape belongs to one request; `chat` and `completion` objects differ in names alone.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from launch.server.messages import Ended, Piece, Scores

Json = Mapping[str, object]

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Shape:
    """`id` is the answer's name; `created` is in seconds since 1970; `fingerprint` names the weights."""

    is_chat: bool
    id: str
    created: int
    model: str
    fingerprint: str
    includes_usage: bool = False
    _texts: list[str] = field(default_factory=list)
    _scores: list[Scores] = field(default_factory=list)
    _offset: int = 0

    # --- whole ---------------------------------------------------------------------------------

    def add(self, piece: Piece) -> None:
        """Keep a piece for the whole answer."""
        self._texts.append(piece.text)
        if piece.scores is not None:
            self._scores.append(piece.scores)

    def whole(self, ended: Ended) -> Json:
        """The answer, once its pieces have been added."""
        text = "".join(self._texts) + ended.text
        logprobs = self._logprobs(self._scores) if self._scores else None
        said: Json = {"message": {"role": "assistant", "content": text, "refusal": None}}
        choice = self._choice(said if self.is_chat else {"text": text}, ended.reason, logprobs)
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {**self._frame(kind), "choices": [choice], "usage": _usage(ended)}

    # --- in chunks -----------------------------------------------------------------------------

    def opening(self) -> bytes:
        """What a stream begins with."""
        return self._chunk({"role": "assistant", "content": ""}, None, None) if self.is_chat else b""

    def chunk(self, piece: Piece) -> bytes:
        """One piece; nothing, while there is nothing to show."""
        if not piece.text and piece.scores is None:
            return b""
        logprobs = None if piece.scores is None else self._logprobs([piece.scores])
        return self._chunk({"content": piece.text}, None, logprobs)

    def closing(self, ended: Ended) -> bytes:
        """What a stream ends with."""
        rest = self._chunk({"content": ended.text}, None, None) if ended.text else b""
        last = self._chunk({} if self.is_chat else {"content": ""}, ended.reason, None)
        usage = b""
        if self.includes_usage:
            usage = as_event({**self._frame(self._chunk_kind), "choices": [], "usage": _usage(ended)})
        return rest + last + usage + DONE

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.is_chat else "text_completion"

    def _chunk(self, delta: Json, reason: str | None, logprobs: Json | None) -> bytes:
        said: Json = {"delta": delta} if self.is_chat else {"text": delta["content"]}
        chunk = {**self._frame(self._chunk_kind), "choices": [self._choice(said, reason, logprobs)]}
        return as_event({**chunk, "usage": None} if self.includes_usage else chunk)

    # --- parts ---------------------------------------------------------------------------------

    def _frame(self, kind: str) -> dict[str, object]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def _choice(self, said: Json, reason: str | None, logprobs: Json | None) -> Json:
        return {"index": 0, **said, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, scores: list[Scores]) -> Json:
        if self.is_chat:
            return {"content": [_chat_entry(one) for one in scores], "refusal": None}
        texts = [one[0][0] for one in scores]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [one[0][1] for one in scores],
            "top_logprobs": [dict(one[1:]) for one in scores],
            "text_offset": offsets,
        }


def as_event(content: Json) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


def _usage(ended: Ended) -> Json:
    return {
        "prompt_tokens": ended.prompt_tokens,
        "completion_tokens": ended.new_tokens,
        "total_tokens": ended.prompt_tokens + ended.new_tokens,
    }


def _chat_entry(scores: Scores) -> Json:
    def entry(text: str, logprob: float) -> dict[str, object]:
        return {"token": text, "logprob": logprob, "bytes": [*text.encode()]}

    chosen, *top = scores
    return {**entry(*chosen), "top_logprobs": [entry(*one) for one in top]}
