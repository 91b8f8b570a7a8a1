"""Stores of the tiny random checkpoints, and the logits that stock transformers computes from them."""

from pathlib import Path

import torch
import transformers
from loader.convert import convert
from support.tiny_models import make_checkpoint


def make_tiny_store(
    arch: str, folder: Path, *, bits: str = "none", fused: bool = False, dtype: str = "float32"
) -> tuple[Path, Path]:
    """(checkpoint, store), both below `folder`."""
    checkpoint = make_checkpoint(arch, folder / "checkpoint", fused=fused, dtype=dtype)
    store = folder / "store"
    convert(str(checkpoint), store, bits=bits, group=64)
    return checkpoint, store


def prompt(batch: int = 2, length: int = 9, vocab: int = 256) -> torch.Tensor:
    """int64 [batch, length] of random tokens above the special ones."""
    return torch.randint(3, vocab, (batch, length), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def stock_logits(checkpoint: Path, implementation: str, input_ids: torch.Tensor) -> torch.Tensor:
    """[batch, length, vocab] of the whole checkpoint, in its own dtype."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, experts_implementation=implementation, dtype="auto"
    )
    logits: torch.Tensor = model(input_ids=input_ids).logits
    return logits
