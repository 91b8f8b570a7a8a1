"""Which token comes next in one answer: its own settings, its own random numbers.

A row of a batch is sampled for itself, so that an answer depends on its seed and not on its
neighbours'. Alone, it chooses as transformers' own sampling does after `torch.manual_seed(seed)`.
"""

import secrets
from collections.abc import Mapping

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from launch.sampling import GREEDY
from launch.server.messages import Ask

_MAX_SEED = 2**31
#: transformers' own, where neither the request nor the model says anything.
_DEFAULT_TOP_K = 50

Settings = Mapping[str, bool | int | float]


class Sampler:
    """The choices of one answer. `own` is the model's generation config."""

    def __init__(self, ask: Ask, own: GenerationConfig, device: torch.device) -> None:
        settings = settings_of(ask, own)
        self._samples = bool(settings["do_sample"])
        self._processors = _processors(settings, self._samples)
        self._random = torch.Generator(device)
        self._random.manual_seed(secrets.randbelow(_MAX_SEED) if ask.seed is None else ask.seed)

    def choose(self, token_ids: torch.Tensor, logits: torch.Tensor) -> int:
        """The next token after `token_ids` [1, n], from float32 `logits` [1, vocabulary]."""
        scores = self._processors(token_ids, logits.clone())
        if not self._samples:
            return int(scores.argmax())
        probabilities = torch.softmax(scores, dim=-1)
        return int(torch.multinomial(probabilities, num_samples=1, generator=self._random))


def settings_of(ask: Ask, own: GenerationConfig) -> Settings:
    """What the request says, else the model, else transformers; greedy overrules the model's penalties."""
    if ask.temperature == 0:
        penalty = {} if ask.repetition_penalty is None else {"repetition_penalty": ask.repetition_penalty}
        return {**GREEDY, **penalty}
    asked = {
        "temperature": ask.temperature,
        "top_p": ask.top_p,
        "top_k": ask.top_k,
        "repetition_penalty": ask.repetition_penalty,
    }
    said = {name: value for name, value in asked.items() if value is not None}
    of_model = {name: value for name, value in own.to_dict().items() if value is not None}
    samples = bool(said.keys() - {"repetition_penalty"}) or bool(of_model.get("do_sample"))
    return {"top_k": _DEFAULT_TOP_K, **of_model, **said, "do_sample": samples}


def _processors(settings: Settings, samples: bool) -> LogitsProcessorList:
    """In transformers' order."""
    chain = LogitsProcessorList()
    if settings.get("repetition_penalty", 1.0) != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(float(settings["repetition_penalty"])))
    if settings.get("no_repeat_ngram_size", 0):
        chain.append(NoRepeatNGramLogitsProcessor(int(settings["no_repeat_ngram_size"])))
    if not samples:
        return chain
    if settings.get("temperature", 1.0) != 1.0:
        chain.append(TemperatureLogitsWarper(float(settings["temperature"])))
    if settings["top_k"]:
        chain.append(TopKLogitsWarper(int(settings["top_k"])))
    if settings.get("top_p", 1.0) < 1.0:
        chain.append(TopPLogitsWarper(float(settings["top_p"])))
    if "min_p" in settings:
        chain.append(MinPLogitsWarper(float(settings["min_p"])))
    if settings.get("typical_p", 1.0) < 1.0:
        chain.append(TypicalLogitsWarper(mass=float(settings["typical_p"])))
    return chain
