"""Greedy tokens of the shipped model: a prompt, and a padded batch."""

import torch

PROMPT = torch.tensor([[5, 17, 99, 3, 42, 7]])
BATCH = torch.tensor([[5, 17, 99, 3], [8, 1, 60, 12], [90, 41, 2, 33]])

Tokens = tuple[list[list[int]], list[list[int]]]


def greedy(model: torch.nn.Module) -> Tokens:
    """Ten new tokens of the prompt, four of each of the batch."""
    found = []
    for prompt, num_new in ((PROMPT, 10), (BATCH, 4)):
        out = model.generate(  # type: ignore[operator]
            prompt,
            do_sample=False,
            repetition_penalty=1.0,
            max_new_tokens=num_new,
            min_new_tokens=num_new,
            eos_token_id=None,
            pad_token_id=0,
        )
        found.append(out.tolist())
    return found[0], found[1]
