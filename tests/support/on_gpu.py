"""The shipped model on a CUDA device, offloaded; and greedy tokens of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from support.greedy import continued

from compute import Offloaded, offload

TOP_K, NUM_KEYS = 4, 192
PROMPT = torch.tensor([[5, 17, 99, 3, 42, 7, 60, 12, 90, 41]])
SLOTS = (TOP_K, TOP_K + 1, 48, NUM_KEYS)


@contextmanager
def on_gpu(store: Path, **settings: object) -> Iterator[Offloaded]:
    with offload(store, device="cuda", **settings) as offloaded:  # type: ignore[arg-type]
        yield offloaded


def greedy(model: torch.nn.Module, num_new: int = 12, **settings: object) -> list[list[int]]:
    return continued(model, PROMPT.to(model.device), num_new, **settings)  # type: ignore[arg-type]
