"""Models whose tokens are recorded, and the ways to call them that tests of recordings share."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from support.tiny_models import random_model, tiny_config
from support.tiny_stores import prompt
from support.token_tape import Tape
from transformers import StaticCache

from compute.beside.follower import Launched
from compute.beside.static_generation import prepare
from compute.beside.token_graph import TokenGraphs

STATIC = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "granitemoe")
NUM_NEW = 8
#: A new kind of call is run as ever once, and rehearsed once.
NUM_FIRST = 2
GREEDY = {"do_sample": False, "repetition_penalty": 1.0}
SAMPLED = {"do_sample": True, "temperature": 1.0, "top_k": 40}

Model = transformers.PreTrainedModel


@dataclass
class FakeRunner:
    """Notes what it is told."""

    told: list[str] = field(default_factory=list)
    is_watched: bool = False

    def takes(self, num_tokens: int) -> bool:
        return not self.is_watched

    @contextmanager
    def recording(self) -> Iterator[list[Launched]]:
        self.told.append("recording")
        try:
            yield [Launched(0, 0, 1, 1)]
        finally:
            self.told.append("recorded")

    @contextmanager
    def replaying(self, steps: Sequence[Launched]) -> Iterator[None]:
        assert steps == [Launched(0, 0, 1, 1)]
        self.told.append("replaying")
        yield
        self.told.append("replayed")

    def follow_to_end(self) -> None:
        self.told.append("following")


@dataclass
class Playing:
    model: Model
    graphs: TokenGraphs
    recorder: Any
    runner: FakeRunner


@contextmanager
def recorded(model: Model, recorder: Any = None, **settings: Any) -> Iterator[Playing]:
    """`model` with its tokens recorded, for the length of the block."""
    recorder, runner = recorder or Tape(), FakeRunner()
    graphs = TokenGraphs(recorder, runner, **settings)
    graphs.take_over(model)
    end = prepare(model)
    try:
        yield Playing(model, graphs, recorder, runner)
    finally:
        end()
        graphs.close()
        model.__dict__.pop("forward", None)
        model.__dict__.pop("generate", None)


def tiny(arch: str, device: str = "cpu") -> Model:
    """Its experts are chosen without a word to the host."""
    model = random_model(tiny_config(arch))
    model.set_experts_implementation("batched_mm")
    return model.to(device)


def padded() -> dict[str, torch.Tensor]:
    """Three prompts of different lengths, padded on the left."""
    ids, mask = prompt(batch=3), torch.ones(3, 9, dtype=torch.int64)
    ids[0, :4] = mask[0, :4] = 0
    ids[2, :1] = mask[2, :1] = 0
    return {"input_ids": ids, "attention_mask": mask}


def generate(model: Model, given: Any, **settings: Any) -> Any:
    """Tokens, logits and the cache of NUM_NEW new tokens."""
    torch.manual_seed(11)
    settings = {**GREEDY, "max_new_tokens": NUM_NEW, "eos_token_id": None, "pad_token_id": 0, **settings}
    given = given if isinstance(given, dict) else {"input_ids": given}
    given = {name: tensor.to(model.device) for name, tensor in given.items()}
    return model.generate(**given, **settings, return_dict_in_generate=True, output_logits=True)


def launched(model: Model, given: Any, **settings: Any) -> Any:
    """The same without recordings, under a static cache."""
    assert "forward" not in vars(model), "nobody has taken over the forward"
    if "past_key_values" not in settings:
        settings = {"cache_implementation": "static", **settings}
    return generate(model, given, disable_compile=True, **settings)


def all_equal(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    """Bit for bit."""
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def assert_same(output: Any, expected: Any) -> None:
    assert output.sequences.tolist() == expected.sequences.tolist()
    assert all_equal(output.logits, expected.logits)


def own_loop(model: Model, cache: Any, num_new: int = NUM_NEW, **kwargs: Any) -> list[torch.Tensor]:
    """Logits of greedy steps as a caller may write them, kept as they were answered."""
    kept = []
    with torch.no_grad():
        answer = model(prompt(batch=2).to(model.device), past_key_values=cache, **kwargs)
        for _ in range(num_new):
            kept.append(answer.logits)
            answer = model(answer.logits[:, -1:].argmax(-1), past_key_values=cache, **kwargs)
    return [*kept, answer.logits]


def static_cache(model: Model, max_cache_len: int = 48) -> StaticCache:
    return StaticCache(config=model.config, max_cache_len=max_cache_len)
