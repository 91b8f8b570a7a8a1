"""A resolver whose device is the CPU: what the Triton kernels do, at once, in plain Python."""

import ctypes

from torch import Tensor

from compute.beside.resolver import OFFERED, POPPED, STEP
from compute.beside.words import (
    EPOCH,
    FOUND_SHIFT,
    IN_PLACE,
    IN_SLOT,
    LANDED,
    MAX_EXPERTS,
    PAYLOAD_MASK,
    PUSHED,
    REPEATED,
    RESIDENT,
    TAG_MASK,
    UNKNOWN,
    DeviceWords,
)


class HostResolver:
    """See `Resolver`."""

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
        step, popped, offered = state.tolist()
        step += layer
        seen: dict[int, int] = {}
        posted = [int(words.control[EPOCH]) & PAYLOAD_MASK]
        for row, expert in enumerate(index.reshape(-1).tolist()):
            source = 0
            if not 0 <= expert < num_experts:
                address, found = 0, UNKNOWN
            elif expert in seen:
                address, found = seen[expert], REPEATED
            else:
                word = int(words.table[layer * num_experts + expert])
                address, found = word & ~IN_SLOT, RESIDENT if word & IN_SLOT else IN_PLACE
                if found == IN_PLACE and popped < offered:
                    source, found = address, LANDED
                    address = int(words.opened[popped % len(words.opened)])
                    popped += 1
                seen[expert] = address
            addresses[row], sources[row] = address, source
            posted.append(found << FOUND_SHIFT | expert & (MAX_EXPERTS - 1))
        posted += predicted.tolist() if predicted is not None else []
        state[POPPED], state[OFFERED] = popped, words.control[PUSHED]
        assert state[STEP] == step - layer
        cell = words.mailbox[step % len(words.mailbox)]
        for place, payload in enumerate(posted):
            cell[place] = (step & TAG_MASK) << 32 | payload

    def gather(self, addresses: Tensor, sources: Tensor, num_bytes: int) -> None:
        for address, source in zip(addresses.tolist(), sources.tolist(), strict=True):
            if source:
                ctypes.memmove(address, source, num_bytes)
