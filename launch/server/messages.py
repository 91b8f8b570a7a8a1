"""What the server's two processes say to each other: the front asks, compute answers.

One JSON line a message, over a socket pair; both ends are of one version. `number` is the front's
name for a request: every Ask ends in exactly one Ended or Declined. Knows no HTTP and no torch.
"""

import json
from dataclasses import asdict, dataclass

#: (text of a token, its log probability), the chosen token first, then the likeliest ones.
Scores = list[tuple[str, float]]
#: What the compute process counts and has chosen.
Report = dict[str, int | float | str | None]


@dataclass(frozen=True, slots=True)
class Ask:
    """Continue `prompt` (text, or token ids), or answer `messages` ({role, content} each): one of the two.

    None is what was not said: then the model's own settings hold, and the answer may fill the
    context. `top_logprobs`: how many likeliest tokens to tell beside each chosen one.
    """

    number: int
    prompt: str | list[int] | None
    messages: list[dict[str, str]] | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    repetition_penalty: float | None
    seed: int | None
    stop: list[str]
    top_logprobs: int | None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for the answer any more: it ends with the current token."""

    number: int


@dataclass(frozen=True, slots=True)
class Inquire:
    """Ask for Figures."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model is there. `fingerprint` is its store's, `context` what it holds at most."""

    store: str
    fingerprint: str
    context: int | None


@dataclass(frozen=True, slots=True)
class Began:
    """The request's turn has come."""

    number: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Piece:
    """One more token. `text` is what can be shown of the answer now; it may be empty."""

    number: int
    text: str
    scores: Scores | None


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer is whole. `reason`: stop, length or cancelled; `text` is what had been held back."""

    number: int
    reason: str
    text: str
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True, slots=True)
class Declined:
    """There is no answer, or no more of it; `text` says why, `param` is the field at fault."""

    number: int
    status: int
    text: str
    param: str | None
    code: str | None


@dataclass(frozen=True, slots=True)
class Figures:
    """What cache, prefetcher and link did so far."""

    report: Report


Order = Ask | Cancel | Inquire
Event = Loaded | Began | Piece | Ended | Declined | Figures

_KINDS: dict[str, type[Order] | type[Event]] = {
    kind.__name__: kind for kind in (Ask, Cancel, Inquire, Loaded, Began, Piece, Ended, Declined, Figures)
}


def to_line(message: Order | Event) -> bytes:
    """`message` and a line's end."""
    return json.dumps([type(message).__name__, asdict(message)]).encode() + b"\n"


def from_line(line: bytes) -> Order | Event:
    """The inverse of `to_line`."""
    name, fields = json.loads(line)
    return _KINDS[name](**fields)
