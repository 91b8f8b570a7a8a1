"""Gate lookahead (speculative gating): the routers of later layers, asked about the residual of now.

The residual stream changes little from layer to layer, so router_{l+d}(norm_{l+d}(h_l)) names
most of what layer l+d will choose; the target's own norm matters. Rule: Eliseev and Mazur,
arXiv 2312.17238. Hooks on the feeding norms take the residual; norms and routers are asked
through `forward`, so that no hook of anybody sees the question.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compute.discovery import MoeLayer
from compute.predictors.base import Prediction


class GateLookahead:
    """Peers `lookahead` MoE layers ahead; layers it cannot peer into are skipped, with a notice."""

    name = "gate"

    def __init__(self, moe_layers: Sequence[MoeLayer], lookahead: int) -> None:
        if lookahead < 1:
            raise ValueError(
                f"the gate's lookahead is {lookahead}; allowed is 1 or more, 0 means no predictor"
            )
        self.lookahead = lookahead
        self.notices: list[str] = []
        self._num_layers = len(moe_layers)
        self._gates: dict[int, tuple[nn.Module, nn.Module]] = {}
        self._residual: dict[int, Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        for layer in moe_layers:
            self._look_at(layer)
        self.notices += _describe_blind(moe_layers)

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        self._residual.clear()

    def predict(self, layer: int, residual: Tensor | None, chosen: Sequence[int]) -> list[Prediction]:
        if residual is None:
            residual = self._residual.pop(layer, None)
        if residual is None:
            return []
        targets = range(layer + 1, min(layer + self.lookahead + 1, self._num_layers))
        rows = residual.reshape(-1, residual.shape[-1])
        with torch.no_grad():
            return [
                Prediction(target, self._peer(target, rows)) for target in targets if target in self._gates
            ]

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._residual.clear()

    def _look_at(self, layer: MoeLayer) -> None:
        """Note how to ask the layer's gate, and listen to what enters its norm."""
        if layer.gate_reason or layer.router is None or layer.norm is None:
            return
        self._gates[layer.index] = layer.norm, layer.router

        def note_residual(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._residual[layer.index] = args[0]

        if layer.index < self._num_layers - 1:
            self._hooks.append(layer.norm.register_forward_pre_hook(note_residual))

    def _peer(self, target: int, rows: Tensor) -> list[int]:
        """The experts that `target`'s gate would choose for rows [T, H]: by tokens, then by logit."""
        norm, router = self._gates[target]
        logits, _, index = router.forward(norm.forward(rows))[:3]
        if len(rows) == 1:
            row = logits.reshape(-1).tolist()
            return sorted(index.reshape(-1).tolist(), key=row.__getitem__, reverse=True)
        wanted, counts = torch.unique(index, return_counts=True)
        means = logits.reshape(-1, logits.shape[-1]).float().mean(0)[wanted]
        ranked = sorted(zip(counts.tolist(), means.tolist(), wanted.tolist()), reverse=True)
        return [expert for _, _, expert in ranked]


def _describe_blind(moe_layers: Sequence[MoeLayer]) -> list[str]:
    """One sentence for each reason why layers cannot be peered into, however many they are."""
    blind: dict[str, list[int]] = {}
    for layer in moe_layers:
        if layer.gate_reason:
            blind.setdefault(layer.gate_reason, []).append(layer.index)
    sentences = []
    for reason, indices in blind.items():
        which = f"layer {indices[0]}" if len(indices) == 1 else f"layers {indices[0]} to {indices[-1]}"
        if len(indices) not in (1, indices[-1] - indices[0] + 1):
            which = f"layers {', '.join(map(str, indices))}"
        sentences.append(f"no speculative gate for MoE {which}: {reason}")
    return sentences
