"""Greedy tokens of the shipped model: of any prompt, and of a prompt and a batch that several tests share."""

import torch

PROMPT = torch.tensor([[5, 17, 99, 3, 42, 7]])
BATCH = torch.tensor([[5, 17, 99, 3], [8, 1, 60, 12], [90, 41, 2, 33]])

Tokens = tuple[list[list[int]], list[list[int]]]


def greedy(model: torch.nn.Module) -> Tokens:
    """Ten new tokens of the prompt, four of each of the batch."""
    return continued(model, PROMPT, 10), continued(model, BATCH, 4)


def continued(
    model: torch.nn.Module, prompt: torch.Tensor, num_new: int, **settings: object
) -> list[list[int]]:
    """`prompt` int64 [n, length] and exactly `num_new` tokens after it, whatever they are."""
    out = model.generate(  # type: ignore[operator]
        prompt,
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
