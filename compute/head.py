"""The head: the last rows of a prompt reach it as a matrix of their own.

Where weights need no gradient, torch takes rows that were cut out of a longer sequence for a batch
of matrices, and multiplies those 50 times slower in bfloat16 on the CPU (2.13: half a second for a
vocabulary of 50,000). The bits are those of a model whose weights need gradients.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def straighten_rows(model: PreTrainedModel) -> None:
    """From now on `model`'s head gets rows that lie one after the other."""
    head = model.get_output_embeddings()
    if isinstance(head, nn.Module):
        head.register_forward_pre_hook(_straighten)


def _straighten(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    hidden, *rest = args
    if hidden.dim() < 3 or hidden.stride(0) == hidden.shape[1] * hidden.stride(1):
        return None
    return hidden.clone(memory_format=torch.contiguous_format), *rest
