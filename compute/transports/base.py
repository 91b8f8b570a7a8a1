"""Transport: gets an expert's bytes into a slot. The small interface that all arrangements share.

A transport knows slots, tickets and bytes; it never decides what is wanted or what leaves.
Slots `0 .. num_slots-1` are the cache (residency owns their meaning); slots
`num_slots .. num_slots+num_transit-1` are for experts that are served without admission.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from compute.arrays import IntArray


@dataclass(frozen=True, slots=True)
class Order:
    """What one step asks of the transport. Pairs are (key, slot), prefetches (key, slot, deadline).

    Obeyed in the order evicted, cancel, promote, demand, prefetch: a slot that `evicted` frees
    may be asked for again in the same order. `promote` and `cancel` name slots on their way.
    `evicted` slots are never read again by compute.
    """

    evicted: list[tuple[int, int]] = field(default_factory=list)
    cancel: list[int] = field(default_factory=list)
    promote: list[int] = field(default_factory=list)
    demand: list[tuple[int, int]] = field(default_factory=list)
    prefetch: list[tuple[int, int, int]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.evicted or self.cancel or self.promote or self.demand or self.prefetch)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Slots whose expert is there, and slots whose cancelled fetch ended without one."""

    landed: list[int]
    dropped: list[int]


class Transport(Protocol):
    """Every method is called from the compute thread only."""

    #: "direct", "emulated", "staged" or "pinned"
    arrangement: str
    num_slots: int
    num_transit: int
    #: bytes moved from a frame to a slot; 0 in direct
    bytes_transferred: int

    def submit(self, order: Order, clock: int) -> None:
        """Pass the order on; returns at once. `clock` is the current layer-step, the demands' deadline."""

    def poll(self) -> Arrivals:
        """What has ended since the last `poll` or `wait`. Never blocks."""

    def wait(self, slots: Collection[int]) -> Arrivals:
        """Block until at least one of `slots` has ended; may report others too.

        Raises LoaderLostError when the loader is gone for good or the timeout passes (the text
        names the setting), StoreError when a demanded expert could not be read.
        """

    def blob(self, slot: int) -> torch.Tensor:
        """uint8 [stride]: the expert in a landed slot, valid until the slot is evicted."""

    def flow_of(self, slot: int) -> int | None:
        """The id of the timeline's arrow that a landed slot's fetch began; None without a timeline."""

    def stats(self) -> dict[str, int]:
        """Counters of the loader and the link, by name (`bytes_read` among them)."""

    def close(self) -> None:
        """Give everything back. Idempotent."""


@runtime_checkable
class AddressedTransport(Protocol):
    """A transport whose slots lie in the memory of the CPU."""

    def addresses(self, slots: IntArray) -> IntArray:
        """Where the blobs of some landed slots lie, each valid until its slot is evicted."""
