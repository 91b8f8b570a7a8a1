"""A transport for unit tests of the stage: experts land in an order drawn from a seed.

Holds every expert's bytes itself. Strict: an order that the contract does not allow fails the
test, and a slot that was evicted or is still on its way holds NaNs, so that reading it shows.
"""

import random
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from compute.transports.base import Arrivals, Order


@dataclass
class _Fetch:
    key: int
    is_demand: bool
    is_cancelled: bool = False


class ShuffledTransport:
    """`blobs`: uint8 [num_keys, stride]. `eagerness`: how likely a fetch ends whenever it may."""

    arrangement = "shuffled"
    bytes_transferred = 0

    def __init__(
        self, blobs: Tensor, num_slots: int, num_transit: int, seed: int = 0, eagerness: float = 0.5
    ) -> None:
        self.num_slots = num_slots
        self.num_transit = num_transit
        self.orders: list[Order] = []
        self.demand_order: list[int] = []
        self.most_busy_transit = 0
        self.is_closed = False
        self.eagerness = eagerness
        self._blobs = blobs
        self._pool = torch.full((num_slots + num_transit, blobs.shape[1]), 255, dtype=torch.uint8)
        self._fetches: dict[int, _Fetch] = {}
        self._full: dict[int, int] = {}
        self._random = random.Random(seed)

    # --- the transport's contract ---------------------------------------------------------------

    def submit(self, order: Order, clock: int) -> None:
        assert order, "an empty order was sent"
        self.orders.append(order)
        for key, slot in order.evicted:
            assert self._full.pop(slot) == key
            self._pool[slot] = 255
        for slot in order.cancel:
            assert not self._fetches[slot].is_cancelled and not self._fetches[slot].is_demand
            self._fetches[slot].is_cancelled = True
        for slot in order.promote:
            self._fetches[slot].is_demand = True
        for key, slot in order.demand:
            self._begin(slot, _Fetch(key, is_demand=True))
            self.demand_order.append(key)
        for key, slot, deadline in order.prefetch:
            assert deadline > clock and slot < self.num_slots
            self._begin(slot, _Fetch(key, is_demand=False))
        busy = sum(slot >= self.num_slots for slot in [*self._fetches, *self._full])
        self.most_busy_transit = max(self.most_busy_transit, busy)

    def poll(self) -> Arrivals:
        return self._end([slot for slot in self._fetches if self._random.random() < self.eagerness])

    def wait(self, slots: Collection[int]) -> Arrivals:
        assert slots, "a wait for nothing"
        assert set(slots) <= set(self._fetches), "a wait for a slot that is not on its way"
        sure = self._random.choice(sorted(slots))
        also = [slot for slot in self._fetches if slot != sure and self._random.random() < self.eagerness]
        return self._end([sure, *also])

    def blob(self, slot: int) -> Tensor:
        assert slot in self._full, f"slot {slot} is read, but its expert is not there"
        return self._pool[slot]

    def flow_of(self, slot: int) -> int | None:
        return 1000 + slot

    def stats(self) -> dict[str, int]:
        return {"bytes_read": 7, "frames": 9}

    def close(self) -> None:
        self.is_closed = True

    # --- its inside -----------------------------------------------------------------------------

    def _begin(self, slot: int, fetch: _Fetch) -> None:
        assert slot not in self._fetches and slot not in self._full, f"slot {slot} is taken"
        self._fetches[slot] = fetch

    def _end(self, slots: list[int]) -> Arrivals:
        """A cancelled fetch may have been too far on its way to be stopped; a promotion may come too late."""
        self._random.shuffle(slots)
        arrivals = Arrivals([], [])
        for slot in slots:
            fetch = self._fetches.pop(slot)
            if fetch.is_cancelled and self._random.random() < 0.5:
                arrivals.dropped.append(slot)
                continue
            self._pool[slot] = self._blobs[fetch.key]
            self._full[slot] = fetch.key
            arrivals.landed.append(slot)
        return arrivals
