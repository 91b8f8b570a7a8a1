"""Segments: a prompt and the tokens after it, run through a model and timed. Knows no arm.

Tokens are given, not sampled, so every arm computes the same; the first pass takes the prompt,
each further one a single token, as in decode.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

#: Told before each pass: (the first token of it within the segment, how many tokens).
Announce = Callable[[int, int], None]

STORY = (
    "Once upon a time there was a king who had three sons, and when he was old he called them to him and "
    "said: My children, whoever of you brings me the water of life shall have my kingdom. The eldest saddled "
    "his horse and rode away, and on the road he met a dwarf, who asked him where he went so fast. Foolish "
    "little man, said the prince, that is no business of yours, and he rode on. But the dwarf was angry, and "
    "wished him evil, and soon the mountains came so close together that the horse could take no further "
    "step. The sick king waited long for him, but he did not come back. Then the second son went out, and it "
    "was no better with him than with his brother. At last the youngest asked leave to go, and when he met "
    "the dwarf he answered him kindly, and told him of his father. Because you have spoken as is seemly, "
    "said the dwarf, I will tell you where the water of life is to be found: it springs from a fountain in "
    "the court of an enchanted castle, and the door will open if you strike it three times with this rod."
)


@dataclass(frozen=True, slots=True)
class Decoded:
    """What the tokens of a segment took together, in seconds.

    `device_s`: of these what a CUDA device spent between the beginning and the end of a pass; the rest
    is the host's alone. None on the CPU.
    """

    seconds: float
    device_s: float | None


def tokens_for(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, count: int) -> Tensor:
    """int64 [1, count]: a story over and over, or random tokens where nothing can read it."""
    if tokenizer is None:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, model.get_input_embeddings().num_embeddings, (1, count), generator=generator)
    told: Tensor = tokenizer(STORY, return_tensors="pt")["input_ids"]
    return told.repeat(1, -(-count // told.shape[1]))[:, :count]


def run_prompt(model: PreTrainedModel, tokens: Tensor, cache: Cache, announce: Announce) -> float:
    """One pass over tokens [1, n], which fills the empty `cache`: the seconds it took."""
    announce(0, tokens.shape[1])
    started = time.perf_counter()
    model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    _finish(model)
    return time.perf_counter() - started


def run_decode(
    model: PreTrainedModel, tokens: Tensor, first: int, cache: Cache, announce: Announce
) -> Decoded:
    """A pass for each of tokens [1, n] from `first` on."""
    marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
    started = time.perf_counter()
    for place in range(first, tokens.shape[1]):
        announce(place, 1)
        with _marked(model, marks):
            model(
                input_ids=tokens[:, place : place + 1],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
    _finish(model)
    seconds = time.perf_counter() - started
    device_s = sum(start.elapsed_time(end) for start, end in marks) / 1e3 if marks else None
    return Decoded(seconds, device_s)


@contextmanager
def _marked(model: PreTrainedModel, marks: list[tuple[torch.cuda.Event, torch.cuda.Event]]) -> Iterator[None]:
    """Two events around what a pass puts on the device's stream."""
    if model.device.type != "cuda":
        yield
        return
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    yield
    end.record()
    marks.append((start, end))


def _finish(model: PreTrainedModel) -> None:
    """A device computes behind the host: its time counts."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def check_length(model: PreTrainedModel, pp: int, tg: int) -> None:
    """Raise ValueError when the model's context is too short."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and pp + tg > context:
        raise ValueError(
            f"--pp {pp} and --tg {tg} are {pp + tg} tokens, the model's context is {context}: pass fewer"
        )
