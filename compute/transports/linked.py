"""Frames on one side, slots on the other, a link between: what emulated, staged and pinned share.

The chunk queue decides what crosses next, the link carries it, a thread keeps the link busy while
compute computes. Owns that thread and the agreement between frames, queue and slots; whatever
befalls the thread is raised in compute. Knows neither the loader's messages nor the device.
"""

import os
import threading
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from functools import partial

from torch import Tensor

from compute.client import LoaderClient
from compute.ledger import Completion
from compute.patience import TIMEOUT_HINT
from compute.transports.base import Arrivals, Order
from compute.transports.chunks import Chunk, ChunkQueue, Progress
from compute.transports.ends import Frames, Link
from protocol.errors import LoaderLostError, ProtocolError, SidestageError, StoreError

#: Frames found torn one after the other before the loader is called broken.
MAX_TORN_IN_A_ROW = 8


class LinkedTransport:
    """Slots that are rows of `pool`, uint8 [num_slots + num_transit, stride]. Closing closes link and client.

    `start` gives it its thread; without one it moves when compute calls it, if its link is asynchronous.
    """

    def __init__(
        self,
        client: LoaderClient,
        frames: Frames,
        link: Link,
        pool: Tensor,
        *,
        arrangement: str,
        num_transit: int,
        chunk_bytes: int,
    ) -> None:
        self.arrangement = arrangement
        self.num_slots = len(pool) - num_transit
        self.num_transit = num_transit
        self.bytes_transferred = 0
        self.pool = pool
        self._slots = list(pool.unbind(0))
        self._client = client
        self._link = link
        # Held by whoever sends and lands: chunks finish in the order they were sent. Taken first.
        self._driving = threading.Lock()
        # Guards everything below down to `_failure`; told of every change that `wait` may wait for.
        self._changed = threading.Condition()
        self._frames = frames
        self._chunks = ChunkQueue(chunk_bytes)
        self._arrivals = Arrivals([], [])
        self._flow_ids: dict[int, int] = {}
        self._staged_ns: dict[int, int] = {}
        self._moved_s = time.monotonic()
        self._num_torn = 0
        self._num_torn_in_a_row = 0
        self._fault = ""
        self._failure: BaseException | None = None
        self._owner = os.getpid()
        self._opened_ns = time.monotonic_ns()
        self._last_stats: dict[str, int] = {}
        self._is_closing = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="sidestage-link", daemon=True)

    def start(self) -> None:
        """From now on the link is fed while compute computes."""
        self._thread.start()

    # --- the compute thread --------------------------------------------------------------------

    def submit(self, order: Order, clock: int) -> None:
        """At most one message. Raises LoaderLostError."""
        with self._changed:
            self._check()
            frames = self._frames
            if order.evicted:
                self._link.vacate([slot for _, slot in order.evicted])
            for key, _ in order.evicted:
                frames.note_evicted(key)
            for slot in order.cancel:
                self._cancel(slot)
            for slot in order.promote:
                frames.promote(slot, clock)
                self._chunks.promote(slot, clock)
            for key, slot in order.demand:
                frames.add(slot, key, clock, is_demand=True)
            for key, slot, deadline in order.prefetch:
                frames.add(slot, key, deadline, is_demand=False)
            frames.flush()
            self._settle([])
        self._advance()

    def poll(self) -> Arrivals:
        """What has ended since the last call. Never blocks."""
        self._advance()
        with self._changed:
            self._check()
            return self._tell()

    def wait(self, slots: Collection[int]) -> Arrivals:
        assert slots, "a wait for nothing never ends"
        since_s = time.monotonic()
        while True:
            self._advance(arms=False)
            with self._changed:
                self._check()
                if any(slot not in self._frames for slot in slots):
                    break
                is_ours = self._link.is_asynchronous and self._link.is_busy
                if not is_ours:
                    self._changed.wait(self._limit_s)
            if is_ours:
                self._link.rest()
            self._check_motion(since_s)
        return self.poll()

    def blob(self, slot: int) -> Tensor:
        """uint8 [stride], on the pool's device. Launch what reads it before the next `submit`."""
        return self._slots[slot]

    def flow_of(self, slot: int) -> int | None:
        return self._flow_ids.get(slot)

    def stats(self) -> dict[str, int]:
        """The counters of whoever fills the frames (after `close` the last asked for) and the link's."""
        if not self._client.is_closed:
            self._last_stats = self._frames.stats()
        link = {
            "link_busy_ns": self._link.busy_ns,
            "link_open_ns": time.monotonic_ns() - self._opened_ns,
            "bytes_transferred": self.bytes_transferred,
            "torn_frames": self._num_torn,
        }
        return {**self._last_stats, **link}

    def close(self) -> None:
        """Stop the link's thread, let what is on its way arrive, then close the client."""
        if os.getpid() != self._owner or self._is_closing:
            return
        self._is_closing = True
        self._client.interrupt()
        os.eventfd_write(self._wake, 1)
        if self._thread.ident is not None:
            self._thread.join(2 * self._client.timeout_s)
        if self._thread.is_alive():
            raise RuntimeError(f"the link thread has not ended within {2 * self._client.timeout_s:g} s")
        with ExitStack() as closing:
            closing.callback(os.close, self._wake)
            closing.callback(self._client.close)
            closing.callback(self._forget)
            closing.callback(self._link.close, self._client.timeout_s)

    def _forget(self) -> None:
        """Whoever still holds this transport holds no memory of the slots."""
        self.pool = self.pool[:0].clone()
        self._slots = []

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

    def _advance(self, *, arms: bool = True) -> None:
        """Land and send from here: a hop to the link's thread costs as much as a small expert.

        Whoever comes back at once need not have that thread woken.
        """
        if self._link.is_asynchronous and self._failure is None:
            self._guarded(partial(self._drive, arms=arms))

    @property
    def _limit_s(self) -> float:
        """The loader has the timeout to stage, and the link as long again to move."""
        return 2 * (self._client.timeout_s + self._link.seconds(self._chunks.chunk_bytes))

    def _check_motion(self, since_s: float) -> None:
        """The loader is watched elsewhere; this is for a link that stands still."""
        if time.monotonic() - max(since_s, self._moved_s) >= self._limit_s:
            raise LoaderLostError(f"the link has not moved for {self._limit_s:g} s {TIMEOUT_HINT}")

    def _cancel(self, slot: int) -> None:
        if self._frames.cancel(slot):
            self._arrivals.dropped.append(slot)
        elif self._chunks.cancel(slot):
            self._frames.release(slot)
            self._arrivals.dropped.append(slot)

    # --- whichever thread drives the link ------------------------------------------------------

    def _run(self) -> None:
        while not self._is_closing and self._failure is None:
            self._guarded(self._turn)

    def _turn(self) -> None:
        news = self._frames.hear((self._link.fd, self._wake))
        if news:
            with self._changed:
                self._settle(news)
        if not self._is_closing:
            self._drive(arms=True)

    def _guarded(self, step: Callable[[], None]) -> None:
        """What befalls either thread is raised in compute; Ctrl-C may have lost a chunk, so it counts."""
        try:
            step()
        except BaseException as failure:
            with self._changed:
                self._failure = failure
                self._changed.notify_all()
            if not isinstance(failure, Exception):
                raise

    def _settle(self, completions: list[Completion]) -> None:
        settled = self._frames.settle(completions)
        self._fault = self._fault or settled.fault
        self._arrivals.dropped.extend(settled.dropped)
        for slot in settled.staged:
            self._enqueue(slot)
        if completions or settled.staged:
            self._step(has_news=bool(settled.dropped) or self._link.is_asynchronous)

    def _enqueue(self, slot: int) -> None:
        """The slot's expert waits in a frame for the link."""
        fetch = self._frames[slot]
        if fetch.is_cancelled:
            self._frames.release(slot)
            self._arrivals.dropped.append(slot)
        elif self._is_sound(slot):
            num_bytes = len(self._slots[slot])
            self._staged_ns[slot] = time.monotonic_ns()
            self._chunks.add(slot, num_bytes, is_demand=fetch.is_demand, deadline=fetch.deadline)

    def _drive(self, *, arms: bool) -> None:
        """Take off the link what has crossed, put on it what fits, and set the alarm for the next."""
        with self._driving:
            while True:
                self._land()
                with self._changed:
                    chunk = self._chunks.start()
                    if chunk is None:
                        break
                    slot = chunk.job
                    source, flow_id = self._frames.staged(slot), self._frames.flow_id(slot)
                self._link.send(chunk, source, self._staged_ns[slot], None if chunk.start else flow_id)
            if arms:
                self._link.arm()

    def _land(self) -> None:
        while (chunk := self._link.crossed()) is not None:
            with self._changed:
                self.bytes_transferred += chunk.num_bytes
                self._finish(chunk)

    def _finish(self, chunk: Chunk) -> None:
        slot = chunk.job
        match self._chunks.finish(chunk):
            case Progress.WHOLE if self._is_sound(slot):
                self._num_torn_in_a_row = 0
                self._flow_ids[slot] = self._frames.flow_id(slot)
                self._frames.release(slot)
                self._arrivals.landed.append(slot)
            case Progress.DROPPED:
                self._frames.release(slot)
                self._arrivals.dropped.append(slot)
        self._step(has_news=slot not in self._frames)

    def _is_sound(self, slot: int) -> bool:
        """The frame holds what was promised; a torn one is asked for again."""
        if self._frames.staged(slot).is_current():
            return True
        self._num_torn += 1
        self._num_torn_in_a_row += 1
        if self._num_torn_in_a_row > MAX_TORN_IN_A_ROW:
            raise ProtocolError("frames change under their leases: the loader is broken")
        self._frames.ask_again(slot)
        return False

    def _step(self, *, has_news: bool) -> None:
        """Something moved: room for the next fetches perhaps, and news for `wait`.

        While the link has work, room is gathered for a few fetches: a message each would cost more.
        """
        self._moved_s = time.monotonic()
        if len(self._chunks) <= self._chunks.max_in_flight or self._frames.room >= self._client.quota // 4:
            self._frames.flush(only_to_ask=True)
        if has_news or self._fault:
            self._changed.notify_all()
