"""The hit path: one token whose experts are all resident goes through them in a single kernel call.

Nothing is asked, nothing is said, and no memory is taken but the answer's. The bits are those of
the long way: the same kernel, the same sum.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from compute.arrays import IntArray
from compute.kernels.base import GroupKernel
from compute.transports.base import AddressedTransport


@dataclass(frozen=True, slots=True)
class _Room:
    """What a token with K experts needs, kept: `outputs` [K, H], and the same memory as [1, K, H]."""

    first: IntArray
    places: Tensor
    outputs: Tensor
    of_token: Tensor


class HitPath:
    """Runs tokens, one at a time, through the experts in some slots."""

    def __init__(self, kernel: GroupKernel, transport: AddressedTransport) -> None:
        self._kernel = kernel
        self._transport = transport
        self._rooms: dict[tuple[int, int, torch.dtype, torch.dtype], _Room] = {}

    def run(self, module: torch.nn.Module, slots: IntArray, hidden: Tensor, weights: Tensor) -> Tensor:
        """hidden [1, H], weights [1, K] -> [1, H]; the token's i-th expert is in slots[i]."""
        room = self._room(hidden, weights)
        addresses = self._transport.addresses(slots)
        self._kernel.run_group(module, addresses, room.first, room.places, hidden, weights, room.outputs)
        return room.of_token.sum(1).to(hidden.dtype)

    def _room(self, hidden: Tensor, weights: Tensor) -> _Room:
        shape = (weights.shape[1], hidden.shape[1], hidden.dtype, weights.dtype)
        room = self._rooms.get(shape)
        if room is None:
            room = self._rooms[shape] = _make_room(*shape)
        return room


def _make_room(top_k: int, width: int, hidden: torch.dtype, weights: torch.dtype) -> _Room:
    with torch.inference_mode(False):
        numbers = torch.arange(top_k + 1)
        outputs = torch.empty(top_k, width, dtype=torch.promote_types(hidden, weights))
        return _Room(numbers.numpy(), numbers[:top_k], outputs, outputs.view(1, top_k, width))
