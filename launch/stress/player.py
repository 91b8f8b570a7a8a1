"""The player: a stage without a model. Takes layer-steps from the routing, and checks every byte.

Residency and transport are the real ones. Knows no processes and no faults, only that an expert
may be refused because its bytes on disk are bad: it is then asked for again until it comes.
"""

import time

import xxhash

from compute.residency import Residency
from compute.transports.base import Arrivals, Order, Transport
from launch.stress.routing import Routing
from launch.stress.tally import Count, Tally
from protocol.errors import StoreError
from protocol.manifest import Manifest

#: Before a refused expert is asked for again.
_REFUSED_PAUSE_S = 0.02


class Player:
    """`compute_s`: how long a layer-step's pretended computation takes; `blob_ns`: the link's time for
    one expert, 0 without a link.

    A demand's latency is what it waits beyond the link's time for itself and for the experts that
    its own layer-step asked for before it.
    """

    def __init__(
        self,
        transport: Transport,
        residency: Residency,
        routing: Routing,
        manifest: Manifest,
        tally: Tally,
        *,
        compute_s: float,
        blob_ns: int,
    ) -> None:
        self._transport = transport
        self._residency = residency
        self._routing = routing
        self._manifest = manifest
        self._tally = tally
        self._compute_s = compute_s
        self._clock = 0
        self._blob_ns = blob_ns
        self._due_ns: dict[int, int] = {}
        self._coming_since_ns = 0
        self._refused: set[int] = set()

    @property
    def num_coming(self) -> int:
        """Experts that were asked for and have not ended."""
        return self._residency.num_coming

    def step(self) -> None:
        """One layer-step: ask, look ahead, compute, wait for what is missing, check what is used."""
        self._clock += 1
        keys = self._routing.next_step()
        self._settle(self._poll())
        awaited = self._ask(keys)
        self._look_ahead(keys)
        time.sleep(self._compute_s)
        self._deliver(awaited)
        for key in keys:
            self._check(key)
        self._tally[Count.STEPS] += 1

    def finish(self) -> None:
        """Wait for everything on its way, and check everything there is."""
        while slots := [self._slot(key) for key in self._all_keys() if not self._residency.is_resident(key)]:
            self._settle(self._wait(slots))
        for key in self._all_keys():
            self._check(key)

    def _all_keys(self) -> list[int]:
        return [key for key in range(self._manifest.num_keys) if self._residency.slot_of(key) is not None]

    def _ask(self, keys: list[int]) -> list[int]:
        """Returns the keys that are not there yet."""
        residency = self._residency
        layer = keys[0] // self._manifest.num_experts
        access = residency.access(layer, keys, self._clock)
        assert not access.passing, "the player has a slot for every expert of a step"
        cancel = residency.cancel_overdue(self._clock)
        promote = [slot for _, slot in access.late]
        now_ns = time.monotonic_ns()
        for place, (_, slot) in enumerate(access.admitted, len(promote) + 1):
            self._due_ns[slot] = now_ns + place * self._blob_ns
        self._submit(Order(access.evicted, cancel, promote, access.admitted))
        return [key for key, _ in [*access.late, *access.admitted]]

    def _look_ahead(self, keys: list[int]) -> None:
        wanted = [
            (key, self._clock + ahead)
            for ahead in range(1, self._routing.lookahead + 1)
            for key in self._routing.guess(ahead)
        ]
        held = {key for key, _ in wanted}.union(keys)
        speculation = self._residency.speculate(wanted, held, self._clock)
        if speculation.coming:
            deadline_of = dict(wanted)
            guesses = [(key, slot, deadline_of[key]) for key, slot in speculation.coming]
            self._submit(Order(evicted=speculation.evicted, prefetch=guesses))
        self._note_coming(time.monotonic_ns())

    def _deliver(self, awaited: list[int]) -> None:
        self._settle(self._poll())
        while slots := [self._slot(key) for key in awaited if not self._residency.is_resident(key)]:
            started_ns = time.monotonic_ns()
            arrivals = self._wait(slots)
            self._tally[Count.STALL_NS] += time.monotonic_ns() - started_ns
            self._settle(arrivals)

    # --- the transport, which may say that an expert was refused --------------------------------

    def _submit(self, order: Order) -> None:
        """A refusal is told before anything is done: the order is given again."""
        while order:
            try:
                self._transport.submit(order, self._clock)
                return
            except StoreError:
                self._note_refusal()

    def _poll(self) -> Arrivals:
        try:
            return self._transport.poll()
        except StoreError:
            self._note_refusal()
            return Arrivals([], [])

    def _wait(self, slots: list[int]) -> Arrivals:
        try:
            return self._transport.wait(slots)
        except StoreError:
            self._note_refusal()
            return Arrivals([], [])

    def _note_refusal(self) -> None:
        self._tally[Count.REFUSED] += 1
        time.sleep(_REFUSED_PAUSE_S)

    def _settle(self, arrivals: Arrivals) -> None:
        now_ns = time.monotonic_ns()
        for slot in arrivals.landed:
            self._land(slot, now_ns)
        again = [pair for slot in arrivals.dropped if (pair := self._end_dropped(slot))]
        if again:
            self._submit(Order(demand=again))
        self._note_coming(now_ns)

    def _land(self, slot: int, now_ns: int) -> None:
        key = self._residency.key_in(slot)
        assert key is not None, slot
        self._residency.landed(slot)
        due_ns = self._due_ns.pop(slot, None)
        if due_ns is not None:
            self._tally.note_demand(max(now_ns - due_ns, 0))
        if key in self._refused:
            self._refused.discard(key)
            self._tally[Count.REPAIRED] += 1
        self._check(key)
        self._tally[Count.TRANSFERS] += 1
        self._tally[Count.BYTES] += self._manifest.layout.stride

    def _end_dropped(self, slot: int) -> tuple[int, int] | None:
        """(key, slot) when a step waits for it."""
        self._due_ns.pop(slot, None)
        if not self._residency.is_awaited(slot):
            self._residency.dropped(slot)
            return None
        key = self._residency.ordered_again(slot)
        self._refused.add(key)
        return key, slot

    def _check(self, key: int) -> None:
        """The blob in the key's slot is the store's."""
        blob = self._transport.blob(self._slot(key)).numpy()
        if xxhash.xxh3_64_intdigest(blob.data) != self._manifest.checksums[key]:
            self._tally[Count.CORRUPT] += 1

    def _note_coming(self, now_ns: int) -> None:
        """Count the time during which something is on its way."""
        if self._coming_since_ns:
            self._tally[Count.COMING_NS] += now_ns - self._coming_since_ns
        self._coming_since_ns = now_ns if self._residency.num_coming else 0

    def _slot(self, key: int) -> int:
        slot = self._residency.slot_of(key)
        assert slot is not None, key
        return slot
