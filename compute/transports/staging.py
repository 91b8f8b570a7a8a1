"""Staging: from a transport's orders to leased frames.

Owns, per slot, the fetch that is to fill it: QUEUED here while the client's quota is used up,
then ASKED of the loader, then STAGED in a leased frame until it is released. Says what a step
has to say in one message. Knows nothing of bytes or of how they reach the slot; not thread-safe.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from compute.client import LoaderClient, Wanted
from compute.ledger import Completion
from compute.transports.urgency import UrgencyQueue


@dataclass(slots=True)
class Fetching:
    """What is to fill a slot. `ticket` is 0 while QUEUED, `completion` None until STAGED."""

    key: int
    deadline: int
    is_demand: bool
    is_cancelled: bool = False
    ticket: int = 0
    completion: Completion | None = None


@dataclass(slots=True)
class Settled:
    """Slots that are STAGED now, slots whose fetch ended without a frame, and why a demand did ("")."""

    staged: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    fault: str = ""


class Staging:
    """At most `max_prefetches` tickets go to prefetches that nobody needs yet: a demand finds room."""

    def __init__(self, client: LoaderClient, max_prefetches: int) -> None:
        self._client = client
        self._max_prefetches = max_prefetches
        self._num_prefetches = 0
        self._fetches: dict[int, Fetching] = {}
        self._slot_of: dict[int, int] = {}
        self._queued = UrgencyQueue()
        self._promoted: list[int] = []
        self._cancelled: list[int] = []
        self._released: list[int] = []
        self._evicted: list[int] = []

    @property
    def room(self) -> int:
        """How many fetches the next `flush` could ask for."""
        return self._client.room + len(self._released)

    def __contains__(self, slot: int) -> bool:
        return slot in self._fetches

    def __getitem__(self, slot: int) -> Fetching:
        return self._fetches[slot]

    def is_coming(self, slot: int) -> bool:
        """QUEUED or ASKED: no frame yet."""
        fetch = self._fetches.get(slot)
        return fetch is not None and fetch.completion is None

    def staged(self, slot: int) -> Completion:
        """The frame of a STAGED slot."""
        completion = self._fetches[slot].completion
        assert completion is not None, f"slot {slot} is not staged"
        return completion

    def flow_id(self, slot: int) -> int:
        """The number of the slot's arrow in the timeline; it must have been ASKED."""
        return self._client.flow_id(self._fetches[slot].ticket)

    # --- the edges of a fetch; what they have to say goes out with the next `flush` ------------

    def add(self, slot: int, key: int, deadline: int, *, is_demand: bool) -> None:
        """Fetch `key` for a slot that has none."""
        assert slot not in self._fetches, f"slot {slot} awaits an expert already"
        self._fetches[slot] = Fetching(key, deadline, is_demand)
        self._queued.add(slot, is_demand=is_demand, deadline=deadline)

    def promote(self, slot: int, deadline: int) -> None:
        """The slot's expert is needed now, even if it was cancelled. Nothing happens once it has ended."""
        fetch = self._fetches.get(slot)
        if fetch is None:
            return
        fetch.is_cancelled = False
        if fetch.is_demand:
            return
        fetch.is_demand, fetch.deadline = True, deadline
        if fetch.ticket:
            self._num_prefetches -= 1
        else:
            self._queued.add(slot, is_demand=True, deadline=deadline)
        if fetch.ticket and not fetch.completion:
            self._promoted.append(fetch.ticket)

    def cancel(self, slot: int) -> bool:
        """Nobody needs it any more. True: it was only QUEUED and has ended here."""
        fetch = self._fetches.get(slot)
        if fetch is None:
            return False
        if self._queued.remove(slot):
            del self._fetches[slot]
            return True
        fetch.is_cancelled = True
        if not fetch.completion:
            self._cancelled.append(fetch.ticket)
        return False

    def release(self, slot: int) -> Fetching:
        """STAGED -> over: the frame is not read any more."""
        ticket = self.staged(slot).ticket
        self._released.append(ticket)
        return self._forget(slot)

    def ask_again(self, slot: int) -> None:
        """STAGED -> QUEUED: the frame turned out to be useless."""
        fetch = self.release(slot)
        self.add(slot, fetch.key, fetch.deadline, is_demand=fetch.is_demand)

    def note_evicted(self, key: int) -> None:
        """A notice to the loader: `key` left its slot."""
        self._evicted.append(key)

    # --- talking and hearing -------------------------------------------------------------------

    def flush(self, *, only_to_ask: bool = False) -> None:
        """Send what there is to say, if anything, in one message.

        `only_to_ask`: stay silent unless an expert can be asked for; the rest can wait.
        """
        slots = self._admit()
        rest = (self._promoted, self._cancelled, self._released, self._evicted)
        if not slots and (only_to_ask or not any(rest)):
            return
        demand = [slot for slot in slots if self._fetches[slot].is_demand]
        prefetch = [slot for slot in slots if not self._fetches[slot].is_demand]
        self._promoted, self._cancelled, self._released, self._evicted = [], [], [], []
        promoted, cancelled, released, evicted = rest
        tickets = self._client.fetch(
            demand=self._wanted(demand),
            prefetch=self._wanted(prefetch),
            promote=promoted,
            cancel=cancelled,
            released=released,
            evicted=evicted,
        )
        for slot, ticket in zip(demand + prefetch, tickets, strict=True):
            self._fetches[slot].ticket = ticket
            self._slot_of[ticket] = slot

    def hear(self, wake: Sequence[int]) -> list[Completion]:
        """Block until a ticket has ended, or one of the fds in `wake` is readable."""
        return self._client.wait(wake=wake, spin_us=0)

    def stats(self) -> dict[str, int]:
        """The loader's counters."""
        return self._client.stats()

    def settle(self, completions: Iterable[Completion]) -> Settled:
        """Sort out how tickets ended. A fetch that the loader dropped unasked is QUEUED again."""
        settled = Settled()
        for completion in completions:
            slot = self._slot_of[completion.ticket]
            fetch = self._fetches[slot]
            if not completion.is_dropped:
                fetch.completion = completion
                settled.staged.append(slot)
                continue
            self._forget(slot)
            if completion.fault or fetch.is_cancelled:
                settled.dropped.append(slot)
            else:
                self.add(slot, fetch.key, fetch.deadline, is_demand=fetch.is_demand)
            if completion.fault and fetch.is_demand:
                settled.fault = completion.fault
        return settled

    def _admit(self) -> list[int]:
        """Take from the queue, most urgent first, what there are tickets for."""
        slots: list[int] = []
        room = self.room
        while len(slots) < room and (slot := self._queued.first()) is not None:
            if not self._fetches[slot].is_demand:
                if self._num_prefetches >= self._max_prefetches:
                    break
                self._num_prefetches += 1
            self._queued.remove(slot)
            slots.append(slot)
        return slots

    def _wanted(self, slots: list[int]) -> list[Wanted]:
        return [(self._fetches[slot].key, self._fetches[slot].deadline) for slot in slots]

    def _forget(self, slot: int) -> Fetching:
        fetch = self._fetches.pop(slot)
        del self._slot_of[fetch.ticket]
        self._num_prefetches -= not fetch.is_demand
        return fetch
