"""Arrangement "emulated": the GPU pipeline without a GPU.

The loader stages experts in frames; a link thread carries them, chunk by chunk through the same
queue that a copy engine gets, over a throttled link into a RAM slot pool, and gives the leases
back. Owns the pool, the link and that thread; whatever befalls the thread is raised in compute.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from compute.client import LoaderClient
from compute.ledger import Completion
from compute.patience import TIMEOUT_HINT
from compute.transports.alarm import Alarm
from compute.transports.base import Arrivals, Order
from compute.transports.chunks import Chunk, ChunkQueue, Progress
from compute.transports.link import LinkClock, chunk_bytes_for
from compute.transports.staging import Staging
from protocol.errors import LoaderLostError, ProtocolError, SidestageError, StoreError
from protocol.timeline import Timeline

POOL_ALIGNMENT = 4096
#: Frames found torn one after the other before the loader is called broken.
MAX_TORN_IN_A_ROW = 8


class _Flight(NamedTuple):
    """A chunk on the link, which has crossed at `end_ns`."""

    chunk: Chunk
    end_ns: int


class EmulatedTransport:
    """Slots in RAM behind a link of `rate` bytes/s (None: unthrottled). Closing closes the client.

    `client` needs a quota of at least 2 frames: one is copied while the next is read.
    """

    arrangement = "emulated"

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
        self.num_slots = num_slots
        self.num_transit = num_transit
        self.bytes_transferred = 0
        #: uint8 [num_slots + num_transit, stride]
        self.pool = aligned_pool(num_slots + num_transit, client.arena.geometry.frame_bytes)
        self._slots = list(self.pool.unbind(0))
        self._bytes = self.pool.numpy()
        self._client = client
        self._timeline = timeline
        # Guards everything below down to `_failure`; told of every change that `wait` may wait for.
        self._changed = threading.Condition()
        self._staging = Staging(client, max_prefetches=max(client.quota // 2, 1))
        self._chunks = ChunkQueue(chunk_bytes or chunk_bytes_for(rate))
        self._arrivals = Arrivals([], [])
        self._flow_ids: dict[int, int] = {}
        self._staged_ns: dict[int, int] = {}
        self._num_steps = 0
        self._num_torn = 0
        self._num_torn_in_a_row = 0
        self._fault = ""
        self._failure: BaseException | None = None
        # The link thread's own.
        self._link = LinkClock(rate)
        self._flights: deque[_Flight] = deque()
        self._last_stats: dict[str, int] = {}
        self._owner = os.getpid()
        self._opened_ns = time.monotonic_ns()
        self._is_closing = False
        self._alarm = Alarm()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="sidestage-link", daemon=True)
        self._thread.start()

    # --- the compute thread --------------------------------------------------------------------

    def submit(self, order: Order, clock: int) -> None:
        """At most one message. Raises LoaderLostError."""
        with self._changed:
            self._check()
            staging = self._staging
            for key, _ in order.evicted:
                staging.note_evicted(key)
            for slot in order.cancel:
                self._cancel(slot)
            for slot in order.promote:
                staging.promote(slot, clock)
                self._chunks.promote(slot, clock)
            for key, slot in order.demand:
                staging.add(slot, key, clock, is_demand=True)
            for key, slot, deadline in order.prefetch:
                staging.add(slot, key, deadline, is_demand=False)
            staging.flush()

    def poll(self) -> Arrivals:
        with self._changed:
            self._check()
            return self._tell()

    def wait(self, slots: Collection[int]) -> Arrivals:
        assert slots, "a wait for nothing never ends"
        with self._changed:
            while True:
                self._check()
                if any(slot not in self._staging for slot in slots):
                    return self._tell()
                self._await_change()

    def blob(self, slot: int) -> Tensor:
        return self._slots[slot]

    def flow_of(self, slot: int) -> int | None:
        return self._flow_ids.get(slot)

    def stats(self) -> dict[str, int]:
        """The loader's counters (after `close` the last asked for) and the link's."""
        if not self._client.is_closed:
            self._last_stats = self._client.stats()
        link = {
            "link_busy_ns": self._link.busy_ns,
            "link_open_ns": time.monotonic_ns() - self._opened_ns,
            "bytes_transferred": self.bytes_transferred,
            "torn_frames": self._num_torn,
        }
        return {**self._last_stats, **link}

    def close(self) -> None:
        """Stop the link thread, then close the client."""
        if os.getpid() != self._owner or self._is_closing:
            return
        self._is_closing = True
        self._client.interrupt()
        os.eventfd_write(self._wake, 1)
        self._thread.join(2 * self._client.timeout_s)
        if self._thread.is_alive():
            raise RuntimeError(f"the link thread has not ended within {2 * self._client.timeout_s:g} s")
        self._client.close()
        self._alarm.close()
        os.close(self._wake)

    def _check(self) -> None:
        """Raise what the link thread met."""
        match self._failure:
            case None:
                pass
            case SidestageError() as failure:
                raise type(failure)(str(failure)) from failure
            case failure:
                raise RuntimeError(f"the link thread failed: {failure!r}") from failure
        if self._fault:
            fault, self._fault = self._fault, ""
            raise StoreError(fault)

    def _tell(self) -> Arrivals:
        arrivals, self._arrivals = self._arrivals, Arrivals([], [])
        return arrivals

    def _await_change(self) -> None:
        """The link thread watches the loader; should it stand still itself, this is the last resort."""
        before = self._num_steps
        chunk_s = self._chunks.chunk_bytes / self._link.rate if self._link.rate else 0.0
        if not self._changed.wait(2 * self._client.timeout_s + 2 * chunk_s) and before == self._num_steps:
            raise LoaderLostError(
                f"the link has not moved for {2 * self._client.timeout_s:g} s {TIMEOUT_HINT}"
            )

    def _cancel(self, slot: int) -> None:
        if self._staging.cancel(slot):
            self._arrivals.dropped.append(slot)
        elif self._chunks.cancel(slot):
            self._staging.release(slot)
            self._arrivals.dropped.append(slot)

    # --- the link thread -----------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._is_closing:
                self._settle(self._client.wait(wake=(self._alarm.fd, self._wake), spin_us=0))
                self._drive()
        except BaseException as failure:  # noqa: BLE001 - raised again in the compute thread
            with self._changed:
                self._failure = failure
                self._changed.notify_all()

    def _settle(self, completions: list[Completion]) -> None:
        if not completions:
            return
        with self._changed:
            settled = self._staging.settle(completions)
            for slot in settled.staged:
                self._enqueue(slot)
            self._arrivals.dropped.extend(settled.dropped)
            self._fault = self._fault or settled.fault
            self._step(has_news=bool(settled.dropped))

    def _enqueue(self, slot: int) -> None:
        """The slot's expert waits in a frame for the link."""
        fetch = self._staging[slot]
        if fetch.is_cancelled:
            self._staging.release(slot)
            self._arrivals.dropped.append(slot)
        elif self._is_sound(slot):
            num_bytes = len(self._slots[slot])
            self._staged_ns[slot] = time.monotonic_ns()
            self._chunks.add(slot, num_bytes, is_demand=fetch.is_demand, deadline=fetch.deadline)

    def _drive(self) -> None:
        """Put on the link what fits, take off it what has crossed, and set the alarm for the next."""
        while True:
            self._land(time.monotonic_ns())
            with self._changed:
                chunk = self._chunks.start()
                completion = self._staging.staged(chunk.job) if chunk else None
            if chunk is None or completion is None:
                break
            self._copy(chunk, completion)
        self._alarm.set(self._flights[0].end_ns if self._flights else None)

    def _copy(self, chunk: Chunk, completion: Completion) -> None:
        from_ns = time.monotonic_ns()
        self._bytes[chunk.job, chunk.start : chunk.end] = completion.blob()[chunk.start : chunk.end]
        ready_ns, copied_ns = self._staged_ns[chunk.job], time.monotonic_ns()
        start_ns, end_ns = self._link.book(ready_ns, from_ns, copied_ns, chunk.num_bytes)
        self._flights.append(_Flight(chunk, max(end_ns, copied_ns)))
        if self._timeline:
            self._timeline.span("copy", "link", start_ns, end_ns, slot=chunk.job, bytes=chunk.num_bytes)
            if chunk.start == 0:
                self._timeline.flow("t", self._client.flow_id(completion.ticket), "link", start_ns)

    def _land(self, now_ns: int) -> None:
        while self._flights and self._flights[0].end_ns <= now_ns:
            chunk = self._flights.popleft().chunk
            with self._changed:
                self.bytes_transferred += chunk.num_bytes
                self._finish(chunk)

    def _finish(self, chunk: Chunk) -> None:
        slot = chunk.job
        match self._chunks.finish(chunk):
            case Progress.WHOLE if self._is_sound(slot):
                self._num_torn_in_a_row = 0
                self._flow_ids[slot] = self._client.flow_id(self._staging.release(slot).ticket)
                self._arrivals.landed.append(slot)
            case Progress.DROPPED:
                self._staging.release(slot)
                self._arrivals.dropped.append(slot)
        self._step(has_news=slot not in self._staging)

    def _is_sound(self, slot: int) -> bool:
        """The frame holds what was promised; a torn one is asked for again."""
        if self._staging.staged(slot).is_current():
            return True
        self._num_torn += 1
        self._num_torn_in_a_row += 1
        if self._num_torn_in_a_row > MAX_TORN_IN_A_ROW:
            raise ProtocolError("frames change under their leases: the loader is broken")
        self._staging.ask_again(slot)
        return False

    def _step(self, *, has_news: bool) -> None:
        """Something moved: room for the next fetches perhaps, and news for `wait`.

        While the link has work, room is gathered for a few fetches: a message each would cost more.
        """
        self._num_steps += 1
        if len(self._chunks) <= self._chunks.max_in_flight or self._staging.room >= self._client.quota // 4:
            self._staging.flush(only_to_ask=True)
        if has_news or self._fault:
            self._changed.notify_all()


def aligned_pool(num_slots: int, stride: int) -> Tensor:
    """uint8 [num_slots, stride] whose first byte, and with a stride of whole pages every slot, is aligned."""
    raw = torch.empty(num_slots * stride + POOL_ALIGNMENT, dtype=torch.uint8)
    start = -raw.data_ptr() % POOL_ALIGNMENT
    return raw[start : start + num_slots * stride].view(num_slots, stride)
