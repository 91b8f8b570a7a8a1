"""Gate lookahead (speculative gating): the routers of later layers, asked about the residual of now.

The residual stream changes little from layer to layer, so router_{l+d}(norm_{l+d}(h_l)) names
most of what layer l+d will choose; the target's own norm matters. Rule: Eliseev and Mazur,
arXiv 2312.17238. Hooks on the feeding norms take the residual; norms and routers are asked
through `forward`, so that no hook of anybody sees the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compute.predictors.base import Prediction, check_lookahead
from compute.predictors.ranking import Ranks, Width, most_wanted, rank, rank_one

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from compute.discovery import MoeLayer


class GateLookahead:
    """Peers `lookahead` MoE layers ahead; layers it cannot peer into are skipped, with a notice.

    Names the k experts that a gate would choose for each token, and more of them with `extra` or
    `percentile`; see `Width`.
    """

    name = "gate"

    def __init__(
        self,
        moe_layers: Sequence[MoeLayer],
        lookahead: int,
        extra: int = 0,
        percentile: float | None = None,
    ) -> None:
        self.lookahead = check_lookahead("the gate", lookahead)
        self.notices: list[str] = []
        self._width = Width(extra, percentile)
        self._num_layers = len(moe_layers)
        self._gates: dict[int, tuple[nn.Module, nn.Module]] = {}
        self._residual: dict[int, Tensor] = {}
        #: what was asked of the gates on the device, by the layer that asked: (target, ranks [T, n])
        self._heard: dict[int, list[tuple[int, Ranks]]] = {}
        self._hooks: list[RemovableHandle] = []
        for layer in moe_layers:
            self._look_at(layer)
        self.notices += _describe_blind(moe_layers)

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        self._residual.clear()
        self._heard.clear()

    def observe(self, layer: int, chosen: Sequence[int]) -> None:
        pass  # what was chosen says nothing that the residual does not

    def predict(self, layer: int, residual: Tensor | None, chosen: Sequence[int]) -> list[Prediction]:
        if (heard := self._heard.pop(layer, None)) is not None:
            return [Prediction(target, most_wanted(ranks)) for target, ranks in heard]
        return [
            Prediction(target, self._wanted(logits, index))
            for target, logits, index in self._ask_after(layer, residual)
        ]

    def ask_on_device(self, layer: int) -> list[tuple[int, Tensor]]:
        """(target, int64 ranks [T, n]) as `peer` has them, on the device; nothing waits for them."""
        from compute.beside.device_ranks import rank_on_device

        return [
            (target, rank_on_device(logits.float(), index, self.num_named(index.shape[1], logits.shape[1])))
            for target, logits, index in self._ask_after(layer, None)
        ]

    def num_named(self, top_k: int, num_experts: int) -> int:
        """The `n` of `peer` and `ask_on_device`."""
        return self._width.of(top_k, num_experts)

    def hear(self, layer: int, answers: list[tuple[int, Ranks]]) -> None:
        """What `ask_on_device` has answered: `predict` says it for `layer` then."""
        self._heard[layer] = answers

    def peer(self, layer: int, residual: Tensor | None = None) -> list[tuple[int, Ranks]]:
        """(target, experts [T, n] most wanted first) for the layers after `layer`, token by token.

        Without a `residual` it is the one that entered the layer's norm last, once.
        """
        return [(target, self._rank(*asked)) for target, *asked in self._ask_after(layer, residual)]

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

    def _ask_after(self, layer: int, residual: Tensor | None) -> list[tuple[int, Tensor, Tensor]]:
        """(target, logits [T, num_experts], index [T, k]) of the gates that can be asked."""
        import torch

        if residual is None:
            residual = self._residual.pop(layer, None)
        if residual is None:
            return []
        targets = range(layer + 1, min(layer + self.lookahead + 1, self._num_layers))
        rows = residual.reshape(-1, residual.shape[-1])
        with torch.no_grad():
            return [(target, *self._ask(target, rows)) for target in targets if target in self._gates]

    def _ask(self, target: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What `target`'s gate says of rows [T, H]."""
        norm, router = self._gates[target]
        logits, _, index = router.forward(norm.forward(rows))[:3]
        return logits.reshape(len(rows), -1), index.reshape(len(rows), -1)

    def _wanted(self, logits: Tensor, index: Tensor) -> list[int]:
        if len(index) > 1:
            return most_wanted(self._rank(logits, index))
        num_named = self.num_named(index.shape[1], logits.shape[1])
        return rank_one(logits[0].tolist(), index[0].tolist(), num_named)

    def _rank(self, logits: Tensor, index: Tensor) -> Ranks:
        num_named = self.num_named(index.shape[1], logits.shape[1])
        return rank(logits.float().numpy(force=True), index.numpy(force=True), num_named)


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
