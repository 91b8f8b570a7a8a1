"""Resolver: turns routed experts into addresses on the device, and says in the mailbox what it found.

What the two kernels before an MoE layer's projections do; `compute.kernels.triton_resolve` has them.
"""

from typing import Protocol

from torch import Tensor

from compute.beside.words import DeviceWords

#: Routed rows of a layer-step that can be resolved at once.
MAX_ROWS = 128

#: Words of a resolver's `state`, int64 on the device. STEP: the layer-step of the pass's layer 0.
#: POPPED: open slots taken so far. OFFERED: what the step before read of PUSHED.
STEP, POPPED, OFFERED = range(3)
NUM_STATE_WORDS = 3


class Resolver(Protocol):
    """Launches on compute's stream; nothing waits for the host."""

    def resolve(
        self,
        words: DeviceWords,
        state: Tensor,
        layer: int,
        num_experts: int,
        index: Tensor,
        predicted: Tensor | None,
        addresses: Tensor,
        sources: Tensor,
    ) -> None:
        """One layer-step. `index` int64 [T, K] contiguous, MAX_ROWS at most; `predicted` int64 [P] or None.

        Writes int64 [T * K] each: `addresses`, where each row's expert is read, 0 for an index that is
        no expert; `sources`, where `gather` must first bring it from, 0 where nothing is to be brought.

        A row whose expert has no slot takes the next open slot if there is one (POPPED < OFFERED), the
        first row of that expert for all of them, in the order of rows; else it reads the frame in
        place. OFFERED is what the step before read of PUSHED, and is read anew for the next step: so a
        slot is refilled only by a step that surely sees the table without whoever was there before.
        Posts the step, state[STEP] + layer, as compute.beside.words says.
        """

    def gather(self, addresses: Tensor, sources: Tensor, num_bytes: int) -> None:
        """Copy `num_bytes`, a multiple of 4096, from sources[i] to addresses[i] where sources[i] is not 0."""
