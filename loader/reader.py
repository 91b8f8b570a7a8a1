"""Reader threads: take the most urgent expert, have it read from the store into its frame.

Owns the threads and the counters of reading. Who wants an expert, and what follows from its
arrival or its loss, is the ledger's business.
"""

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from loader.faults import FaultBoard
from loader.ledger import Ledger
from loader.queue import TicketId
from loader.store_files import ChecksumError, StoreFiles
from loader.tickets import Fill
from protocol.arena import Arena
from protocol.errors import StoreError
from protocol.messages import ExpertId
from protocol.timeline import Timeline

_ATTEMPTS = 2
#: How often a read that is slowed down on purpose looks whether it is still wanted.
_GLANCE_S = 0.002


@dataclass(slots=True)
class ReadCounters:
    """Since this loader started; `read_us` is the time spent reading, over all threads."""

    reads: int = 0
    bytes_read: int = 0
    checksum_failures: int = 0
    read_us: int = 0


class Readers:
    """The threads. With `rate` (bytes per second) there is one, and each read lasts as long as the
    rate says: a disk of that speed."""

    def __init__(
        self,
        ledger: Ledger,
        files: StoreFiles,
        arena: Arena,
        *,
        num_experts: int,
        num_threads: int,
        rate: int | None,
        wake_fd: int,
        timeline: Timeline | None,
        faults: FaultBoard | None = None,
    ) -> None:
        """Start reading into the frames of `arena`; `wake_fd` is written to when the outbox has
        something to say."""
        self.counters = ReadCounters()
        self.error: BaseException | None = None
        self._ledger = ledger
        self._files = files
        self._arena = arena
        self._num_experts = num_experts
        self._stride = arena.geometry.frame_bytes
        self._rate = rate
        self._wake_fd = wake_fd
        self._timeline = timeline
        self._faults = faults
        self._lock = threading.Lock()
        count = 1 if rate else num_threads
        self._threads = [
            threading.Thread(
                target=self._run, args=(f"reader {number}",), name=f"reader {number}", daemon=True
            )
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait for the threads' end after the ledger was closed. False: some still read."""
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in self._threads)

    def snapshot(self) -> ReadCounters:
        """The counters, all of one instant."""
        with self._lock:
            c = self.counters
            return ReadCounters(c.reads, c.bytes_read, c.checksum_failures, c.read_us)

    def _run(self, track: str) -> None:
        try:
            while (fill := self._ledger.take()) is not None:
                self._serve(fill, track)
        except BaseException as error:  # noqa: BLE001 - the loop must know, and stops the loader
            self.error = error
            os.eventfd_write(self._wake_fd, 1)

    def _serve(self, fill: Fill, track: str) -> None:
        start_ns = time.monotonic_ns()
        problem = self._read(fill)
        if problem:
            self._ledger.fail(fill, problem)
            os.eventfd_write(self._wake_fd, 1)
            return
        if self._rate and not self._pace(fill, start_ns / 1e9 + self._stride / self._rate):
            return
        tickets = list(fill.tickets)
        self._count(fill, start_ns)
        if self._ledger.finish(fill):
            os.eventfd_write(self._wake_fd, 1)
        if self._timeline:
            self._draw(self._timeline, fill, tickets, track, start_ns)

    def _read(self, fill: Fill) -> str:
        """Read and check, once more if need be. Returns what is wrong, "" when all is well."""
        problem = ""
        for _ in range(_ATTEMPTS):
            if self._faults:
                self._faults.delay_read()
            try:
                self._files.read(fill.key, self._arena.frames[fill.frame])
                return ""
            except StoreError as error:
                problem = str(error)
                with self._lock:
                    self.counters.checksum_failures += isinstance(error, ChecksumError)
        return problem

    def _pace(self, fill: Fill, until_s: float) -> bool:
        """Sleep to the end of the read's stated time. False: nobody wanted it any more."""
        while (rest := until_s - time.monotonic()) > 0:
            if not fill.tickets and self._ledger.give_up(fill):
                return False
            time.sleep(min(rest, _GLANCE_S))
        return True

    def _count(self, fill: Fill, start_ns: int) -> None:
        with self._lock:
            self.counters.reads += 1
            self.counters.bytes_read += self._stride
            self.counters.read_us += (time.monotonic_ns() - start_ns) // 1000

    def _draw(
        self, timeline: Timeline, fill: Fill, tickets: Sequence[TicketId], track: str, start_ns: int
    ) -> None:
        end_ns = time.monotonic_ns()
        layer, expert = ExpertId.from_key(fill.key, self._num_experts)
        timeline.span("read", track, start_ns, end_ns, key=fill.key, layer=layer, expert=expert)
        for client, ticket in tickets:
            timeline.flow("t", client << 24 | ticket, track, (start_ns + end_ns) // 2)
