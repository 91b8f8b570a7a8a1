"""The device's way through an MoE layer: launches alone, from routed experts to combined outputs.

Resolve, gather, multiply, sum: the kernels and the sum of the host's way, so the same bits. Nothing
here waits for the device or asks it anything; what it did is for the follower to read.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compute.beside.follower import Launched
from compute.beside.resolver import NUM_STATE_WORDS, STEP, Resolver
from compute.beside.words import DeviceWords
from compute.kernels.base import AddressedKernel
from compute.predictors.gate import GateLookahead


@dataclass(frozen=True, slots=True)
class Room:
    """What a step of one shape needs, kept: int64 [T * K] twice, and `outputs` [T * K, H]."""

    addresses: Tensor
    sources: Tensor
    outputs: Tensor


class DevicePath:
    """Launches on compute's current stream. `gate`: asked in each step, its answers go to the mailbox."""

    def __init__(
        self,
        words: DeviceWords,
        resolver: Resolver,
        kernel: AddressedKernel,
        gate: GateLookahead | None,
        *,
        num_experts: int,
        blob_bytes: int,
        device: torch.device,
    ) -> None:
        self._words = words
        self._resolver = resolver
        self._kernel = kernel
        self._gate = gate
        self._num_experts = num_experts
        self._blob_bytes = blob_bytes
        self._rooms: dict[tuple[object, ...], Room] = {}
        with torch.inference_mode(False):
            self._state = torch.zeros(NUM_STATE_WORDS, dtype=torch.int64, device=device)

    def begin_pass(self, clock: int) -> None:
        """Layer 0 of what is launched from now on is layer-step `clock`."""
        self._state[STEP].fill_(clock)

    def bring(
        self, layer: int, clock: int, hidden: Tensor, index: Tensor, weights: Tensor
    ) -> tuple[Room, Launched]:
        """Find the experts of index [T, K], and bring what is missing. The follower must hear of it."""
        answers = self._gate.ask_on_device(layer) if self._gate else []
        predicted = torch.cat([ranks.reshape(-1) for _, ranks in answers]) if answers else None
        room = self._room(hidden, weights)
        self._resolver.resolve(
            self._words,
            self._state,
            layer,
            self._num_experts,
            index.contiguous(),
            predicted,
            room.addresses,
            room.sources,
        )
        self._resolver.gather(room.addresses, room.sources, self._blob_bytes)
        asked = tuple((target, ranks.shape[1]) for target, ranks in answers)
        num_tokens, top_k = weights.shape
        return room, Launched(layer, clock, num_tokens, top_k, asked)

    def compute(self, module: nn.Module, room: Room, hidden: Tensor, weights: Tensor) -> Tensor:
        """[T, H] of hidden [T, H] and weights [T, K], by the experts that were brought."""
        self._kernel.run_at(module, room.addresses, hidden, weights, room.outputs)
        return room.outputs.view(*weights.shape, -1).sum(1).to(hidden.dtype)

    def _room(self, hidden: Tensor, weights: Tensor) -> Room:
        """Steps follow each other on one stream, so one room serves every layer."""
        shape = (*weights.shape, hidden.shape[1], hidden.dtype, weights.dtype)
        if shape not in self._rooms:
            self._rooms[shape] = _make_room(hidden, weights)
        return self._rooms[shape]


def _make_room(hidden: Tensor, weights: Tensor) -> Room:
    num_rows, dtype = weights.numel(), torch.promote_types(hidden.dtype, weights.dtype)
    with torch.inference_mode(False):
        addresses, sources = torch.zeros(2, num_rows, dtype=torch.int64, device=hidden.device)
        # Rows of an index that is no expert are skipped, and the follower raises: until then, zeros.
        outputs = torch.zeros(num_rows, hidden.shape[1], dtype=dtype, device=hidden.device)
    return Room(addresses, sources, outputs)
