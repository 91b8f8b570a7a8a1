"""The shipped model on a CUDA device, offloaded; and greedy tokens of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from compute import Offloaded, offload

TOP_K, NUM_KEYS = 4, 192
PROMPT = torch.tensor([[5, 17, 99, 3, 42, 7, 60, 12, 90, 41]])
SLOTS = (TOP_K, TOP_K + 1, 48, NUM_KEYS)


@contextmanager
def on_gpu(store: Path, **settings: object) -> Iterator[Offloaded]:
    with offload(store, device="cuda", **settings) as offloaded:  # type: ignore[arg-type]
        yield offloaded


def greedy(model: torch.nn.Module, num_new: int = 12, **settings: object) -> list[list[int]]:
    out = model.generate(  # type: ignore[operator]
        PROMPT.to(model.device),
        do_sample=False,
        repetition_penalty=1.0,
        max_new_tokens=num_new,
        min_new_tokens=num_new,
        eos_token_id=None,
        pad_token_id=0,
        **settings,
    )
    ids: list[list[int]] = out.tolist()
    return ids
