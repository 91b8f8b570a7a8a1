"""Plays arbitrary orders against a transport, as a stage would give them, and checks every byte.

A small model of the slots says which orders are legal; the player draws among them.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.synthetic_store import expected_blob

from compute.client import LoaderClient
from compute.loader_process import OwnedLoader
from compute.transports.base import Arrivals, Order, Transport
from protocol.errors import StoreError
from protocol.manifest import Manifest


class TransportPlay:
    """One transport, its slots as a stage sees them, and the clock."""

    def __init__(self, transport: Transport, client: LoaderClient, store: Path) -> None:
        self.transport = transport
        self.client = client
        self.manifest = Manifest.read(store)
        self.clock = 0
        self.coming: dict[int, int] = {}  # slot -> key
        self.there: dict[int, int] = {}
        self.num_landed = 0
        self.num_dropped = 0

    @property
    def free(self) -> list[int]:
        num_slots = self.transport.num_slots + self.transport.num_transit
        return [slot for slot in range(num_slots) if slot not in self.coming and slot not in self.there]

    def step(self, numbers: list[int]) -> None:
        """One order made of `numbers`, each of which becomes something that a stage may ask for."""
        self.clock += 1
        order = Order()
        touched: set[int] = set()
        for number in numbers:
            what, choice = number % 5, number // 5
            if what == 0 and self.there:
                slot = self._choice(sorted(self.there), choice)
                order.evicted.append((self.there.pop(slot), slot))
            elif what in (1, 2) and (untouched := sorted(set(self.coming) - touched)):
                slot = self._choice(untouched, choice)
                (order.cancel if what == 1 else order.promote).append(slot)
                touched.add(slot)
            elif what in (3, 4) and self.free:
                key, slot = choice % self.manifest.num_keys, self.free[0]
                self.coming[slot] = key
                touched.add(slot)
                if what == 3:
                    order.demand.append((key, slot))
                else:
                    order.prefetch.append((key, slot, self.clock + choice % 3))
        self.transport.submit(order, self.clock)
        self.check_quota()
        self.settle(self.transport.poll())

    def settle(self, arrivals: Arrivals) -> None:
        for slot in arrivals.landed:
            key = self.coming.pop(slot)
            self.there[slot] = key
            assert self.transport.blob(slot).numpy().tobytes() == expected_blob(self.manifest, key), key
        for slot in arrivals.dropped:
            del self.coming[slot]
        self.num_landed += len(arrivals.landed)
        self.num_dropped += len(arrivals.dropped)

    def wait_for_all(self) -> None:
        while self.coming:
            self.settle(self.transport.wait([*self.coming]))
            self.check_quota()

    def check_everything_there(self) -> None:
        for slot, key in self.there.items():
            assert self.transport.blob(slot).numpy().tobytes() == expected_blob(self.manifest, key), key

    def check_quota(self) -> None:
        assert self.client.tickets.num_open <= self.client.quota

    def demand(self, *keys: int) -> list[int]:
        """Demand `keys` for free slots; returns the slots."""
        slots = self.free[: len(keys)]
        assert len(slots) == len(keys), "no slot is free"
        self.coming.update(zip(slots, keys, strict=True))
        self.transport.submit(Order(demand=[*zip(keys, slots, strict=True)]), self.clock)
        return slots

    def prefetch(self, *keys: int) -> list[int]:
        """Prefetch `keys`, due one step after the other; returns the slots."""
        slots = self.free[: len(keys)]
        assert len(slots) == len(keys), "no slot is free"
        self.coming.update(zip(slots, keys, strict=True))
        wanted = [(key, slot, self.clock + ahead) for ahead, (key, slot) in enumerate(zip(keys, slots), 1)]
        self.transport.submit(Order(prefetch=wanted), self.clock)
        return slots

    def evict(self, *slots: int) -> None:
        self.transport.submit(Order(evicted=[(self.there.pop(slot), slot) for slot in slots]), self.clock)

    def play_for(self, seconds: float) -> None:
        """Orders of all kinds, each waited for."""
        until = time.monotonic() + seconds
        number = 0
        while time.monotonic() < until:
            number += 7
            self.step([number, number * 3 + 3, number * 5 + 3, number + 4, number * 11])
            self.wait_for_all()
            self.check_everything_there()

    def meet_damage(self, damaged: int) -> None:
        """A prefetch of the expert is dropped, a demand of it is an error, and its neighbours arrive."""
        self.prefetch(damaged - 1, damaged)
        self.wait_for_all()
        assert (self.num_landed, self.num_dropped) == (1, 1)
        (slot,) = self.demand(damaged)
        with pytest.raises(StoreError, match="checksum"):
            self.wait_for_all()
        assert self.transport.poll().dropped == [slot]
        del self.coming[slot]
        self.demand(damaged + 1)
        self.wait_for_all()
        self.check_everything_there()

    @staticmethod
    def _choice(items: list[int], number: int) -> int:
        return items[number % len(items)]


@contextmanager
def killed_now_and_then(loader: OwnedLoader, interval_s: float = 1.0) -> Iterator[None]:
    """Kill whichever process the loader is, again and again, during the body."""
    is_over = threading.Event()

    def kill() -> None:
        while not is_over.wait(interval_s):
            with suppress(ProcessLookupError):  # dead already, and not yet replaced
                os.kill(loader.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        is_over.set()
        killer.join()
