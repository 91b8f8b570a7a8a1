"""RouterProbs: the routers' whole distributions, for policies and trace recorders that want them.

Listens to each MoE layer's router; the softmax of its logits is computed when it is asked for.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compute.discovery import MoeLayer
from compute.policies.base import FloatArray


class RouterProbs:
    """What each router said last, until the layer's next turn."""

    def __init__(self, moe_layers: Sequence[MoeLayer]) -> None:
        self._logits: dict[int, Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        for layer in moe_layers:
            self._listen_to(layer)

    def of_tokens(self, layer: int) -> Tensor | None:
        """float32 [T, num_experts] of the layer's last turn; None where its router cannot be heard."""
        logits = self._logits.get(layer)
        if logits is None:
            return None
        with torch.no_grad():
            return torch.softmax(logits.reshape(-1, logits.shape[-1]), dim=-1, dtype=torch.float32)

    def mean(self, layer: int) -> FloatArray | None:
        """[num_experts]: the distribution averaged over the tokens, to the precision that a trace keeps.

        So a replay of a recorded trace shows a policy the very same numbers.
        """
        probs = self.of_tokens(layer)
        if probs is None:
            return None
        kept = probs.half().numpy(force=True)
        mean: FloatArray = kept.mean(axis=0, dtype=np.float32)
        return mean

    def close(self) -> None:
        """Stop listening. Idempotent."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._logits.clear()

    def _listen_to(self, layer: MoeLayer) -> None:
        if layer.router is None:
            return

        def note_logits(router: nn.Module, args: tuple[object, ...], output: object) -> None:
            logits = output[0] if isinstance(output, tuple) else output
            if isinstance(logits, Tensor):
                self._logits[layer.index] = logits

        self._hooks.append(layer.router.register_forward_hook(note_logits))
