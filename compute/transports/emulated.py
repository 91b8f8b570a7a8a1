"""Arrangement "emulated": the GPU pipeline without a GPU.

The loader stages experts in frames; a thread carries them, chunk by chunk through the same queue
that a copy engine gets, over a throttled link into a RAM slot pool, and gives the leases back.
"""

import torch
from torch import Tensor

from compute.arrays import IntArray
from compute.client import LoaderClient
from compute.transports.link import chunk_bytes_for
from compute.transports.linked import LinkedTransport
from compute.transports.staging import Staging
from compute.transports.throttled_link import ThrottledLink
from protocol.timeline import Timeline

POOL_ALIGNMENT = 4096


class EmulatedTransport(LinkedTransport):
    """Slots in RAM behind a link of `rate` bytes/s (None: unthrottled). Closing closes the client.

    `client` needs a quota of at least 2 frames: one is copied while the next is read.
    """

    def __init__(
        self,
        client: LoaderClient,
        *,
        num_slots: int,
        num_transit: int,
        rate: int | None = None,
        chunk_bytes: int | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        if client.quota < 2:
            raise ValueError("a quota of 1 frame: emulated needs at least 2, to read one and copy another")
        pool = aligned_pool(num_slots + num_transit, client.arena.geometry.frame_bytes)
        self._first, self._stride = pool.data_ptr(), pool.shape[1]
        super().__init__(
            client,
            Staging(client, max_prefetches=max(client.quota // 2, 1)),
            ThrottledLink(pool.numpy(), rate, timeline),
            pool,
            arrangement="emulated",
            num_transit=num_transit,
            chunk_bytes=chunk_bytes or chunk_bytes_for(rate),
        )
        self.start()

    def addresses(self, slots: IntArray) -> IntArray:
        return slots * self._stride + self._first


def aligned_pool(num_slots: int, stride: int) -> Tensor:
    """uint8 [num_slots, stride] whose first byte, and with a stride of whole pages every slot, is aligned."""
    raw = torch.empty(num_slots * stride + POOL_ALIGNMENT, dtype=torch.uint8)
    start = -raw.data_ptr() % POOL_ALIGNMENT
    return raw[start : start + num_slots * stride].view(num_slots, stride)
