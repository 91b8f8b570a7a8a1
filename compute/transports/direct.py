"""Arrangement "direct": the slots are leased frames, read in place. For a device that is the CPU.

A slot is full as long as its lease is held; an eviction gives the lease back in the same message
that asks for the newcomer. No byte is copied: the loader fills frames while compute computes.
"""

from collections.abc import Collection

import numpy as np
from torch import Tensor

from compute.arrays import IntArray
from compute.client import LoaderClient
from compute.ledger import Completion
from compute.transports.addresses import FrameAddresses
from compute.transports.base import Arrivals, Order
from compute.transports.staging import Staging
from compute.transports.views import FrameViews
from protocol.errors import ProtocolError, StoreError


class DirectTransport:
    """Slots over `client`, whose quota must hold them all. Closing closes the client."""

    arrangement = "direct"
    bytes_transferred = 0

    def __init__(self, client: LoaderClient, *, num_slots: int, num_transit: int) -> None:
        if num_slots + num_transit > client.quota:
            raise ValueError(
                f"{num_slots} slots and {num_transit} for transit need as many frames, the client has a "
                f"quota of {client.quota}: ask for more, or for fewer slots"
            )
        self.num_slots = num_slots
        self.num_transit = num_transit
        self._client = client
        self._staging = Staging(client, max_prefetches=client.quota)
        self._views = FrameViews()
        self._addresses = FrameAddresses(num_slots + num_transit)
        self._landed: list[int] = []
        self._dropped: list[int] = []
        self._fault = ""
        self._last_stats: dict[str, int] = {}

    def submit(self, order: Order, clock: int) -> None:
        """One message, whatever there is to say. Raises LoaderLostError."""
        staging = self._staging
        for _, slot in order.evicted:
            staging.release(slot)
        self._dropped += [slot for slot in order.cancel if staging.cancel(slot)]
        for slot in order.promote:
            staging.promote(slot, clock)
        for key, slot in order.demand:
            staging.add(slot, key, clock, is_demand=True)
        for key, slot, deadline in order.prefetch:
            staging.add(slot, key, deadline, is_demand=False)
        staging.flush()

    def poll(self) -> Arrivals:
        self._settle(self._client.completed())
        return self._tell()

    def wait(self, slots: Collection[int]) -> Arrivals:
        self._settle(self._client.completed())
        assert slots, "a wait for nothing never ends"
        while all(self._staging.is_coming(slot) for slot in slots) and not self._fault:
            self._settle(self._client.wait())
        return self._tell()

    def blob(self, slot: int) -> Tensor:
        """uint8 [stride]: the leased frame itself. Only to be read."""
        completion = self._staging.staged(slot)
        if not completion.is_current():
            raise ProtocolError(f"frame {completion.frame} changed under its lease: the loader is broken")
        return self._views.of(completion)

    def addresses(self, slots: IntArray) -> IntArray:
        found = self._addresses.of(slots)
        if found is not None:
            return found
        return np.array([self.blob(slot).data_ptr() for slot in slots.tolist()], np.int64)

    def flow_of(self, slot: int) -> int | None:
        return self._client.flow_id(self._staging.staged(slot).ticket)

    def stats(self) -> dict[str, int]:
        """The loader's counters; after `close` the last ones that were asked for."""
        if not self._client.is_closed:
            self._last_stats = self._client.stats()
        return dict(self._last_stats)

    def close(self) -> None:
        self._views, self._addresses = FrameViews(), FrameAddresses(0)
        self._client.close()

    def _settle(self, completions: list[Completion]) -> None:
        settled = self._staging.settle(completions)
        for slot in settled.staged:
            self._addresses.note(slot, self._staging.staged(slot))
        self._landed += settled.staged
        self._dropped += settled.dropped
        self._fault = self._fault or settled.fault
        if completions:
            self._staging.flush(only_to_ask=True)

    def _tell(self) -> Arrivals:
        """What has ended; a demand that failed is told first, and once."""
        if self._fault:
            fault, self._fault = self._fault, ""
            raise StoreError(fault)
        arrivals = Arrivals(self._landed, self._dropped)
        self._landed, self._dropped = [], []
        return arrivals
