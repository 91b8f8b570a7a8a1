"""The service: opens a loader's parts in order, turns its one loop, and closes them again.

Advances the arena's turn counter, so that a loop that hangs can be told from one that waits.
Tickets live in the ledger, bytes move in the reader threads, clients come in at the reception and
are served at the desk.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Self

import zmq

from loader.desk import Desk
from loader.direct_io import choose_reading, find_obstacle
from loader.faults import FaultBoard
from loader.ledger import Ledger
from loader.options import ServeOptions
from loader.reader import Readers
from loader.reception import Reception
from loader.store_files import StoreFiles
from protocol.arena import H_TURNS, Arena, available_memory_bytes
from protocol.channel import BusServer
from protocol.child import Lifeline
from protocol.door import DoorServer
from protocol.errors import StoreError
from protocol.folder import BUS_NAME, prepare_folder, remove_folder
from protocol.manifest import Manifest
from protocol.messages import Stopped
from protocol.timeline import Timeline
from protocol.units import format_size

#: The loop turns at least this often.
TURN_MS = 50
#: How long fills under way may take to finish once the loader stops.
DRAIN_S = 5.0

_LINGER_S = 0.5
_TURN_MASK = (1 << 63) - 1

log = logging.getLogger("sidestage.loader")


def serve(options: ServeOptions, *, on_ready: Callable[[dict[str, object]], None]) -> None:
    """Serve until SIGTERM, SIGINT, the owner's Shutdown or the parent's death.

    `on_ready` is told the facts once clients may knock. Raises SidestageError, ValueError or
    OSError when it cannot start. Signals are ours only while it runs in the main thread.
    """
    with Service(options) as service, _stopped_by_signals(service):
        on_ready(service.facts)
        service.run()


class Service:
    """A loader. Made ready by its constructor; `run` returns when it has stopped."""

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._stop_reason = ""
        self._is_in_a_hurry = False
        self._timeline = Timeline("loader") if options.timeline else None
        self._faults: FaultBoard | None = None
        self._opened = contextlib.ExitStack()
        try:
            if options.faults:
                self._faults = self._opened.enter_context(FaultBoard(options.faults))
            self._open_store()
            self._open_arena()
            self._open_files()
            self._open_sockets()
            self._start_reading()
        except BaseException:
            self._opened.close()
            raise

    @property
    def facts(self) -> dict[str, object]:
        """What the one who started it wants to know."""
        return {
            "endpoint": os.fspath(self._door.path),
            "pid": os.getpid(),
            "num_frames": self._arena.geometry.num_frames,
            "store": self._manifest.fingerprint,
            "reads": self._reading.words,
        }

    def stop(self, reason: str) -> None:
        """Ask the loop to drain and stop; asked again, it does not wait for fills. For signals too."""
        self._is_in_a_hurry = bool(self._stop_reason)
        self._stop_reason = self._stop_reason or reason
        os.eventfd_write(self._wake_fd, 1)

    def run(self) -> None:
        """Turn until somebody stops the loader, then drain."""
        log.info("serving %s at %s", self._options.store, self._door.path)
        log.info("experts are read %s", self._reading.words)
        while not self._stop_reason:
            self._turn()
        log.info("stopping: %s", self._stop_reason)
        self._drain()

    def close(self) -> None:
        """Give everything back, in reverse order; no file stays. Idempotent."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # --- start and end -----------------------------------------------------------------------

    def _open_store(self) -> None:
        self._manifest = Manifest.read(self._options.store)
        self._manifest.check_shards(self._options.store)

    def _open_arena(self) -> None:
        if self._faults:
            self._faults.fill_memory(os.fstat(self._options.arena_fd).st_size)
        self._arena = self._opened.enter_context(Arena(self._options.arena_fd, writable=True))
        _check_stride(self._arena, self._manifest)
        self._arena.populate()
        self._ledger = Ledger(self._arena, self._manifest.fingerprint, self._manifest.num_keys)
        self._opened.callback(self._ledger.close)
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._opened.callback(os.close, self._wake_fd)

    def _open_files(self) -> None:
        """The arena has its memory by now: what is left tells how to read."""
        store, manifest = self._options.store, self._manifest
        obstacle = find_obstacle(store, manifest)
        spare_bytes, wanted = available_memory_bytes(), self._options.direct_io
        self._reading = choose_reading(wanted, manifest.expert_bytes_total, spare_bytes, obstacle)
        verify, is_direct = self._options.verify, self._reading.is_direct
        self._files = StoreFiles(store, manifest, verify, is_direct=is_direct)
        self._opened.callback(self._files.close)

    def _open_sockets(self) -> None:
        folder, lifeline_fd = self._options.folder, self._options.lifeline_fd
        self._lifeline_fds: list[int] = []
        if lifeline_fd is not None:
            lifeline = Lifeline(lifeline_fd)
            self._opened.callback(lifeline.close)
            self._lifeline_fds = lifeline.fds
        prepare_folder(folder)
        self._opened.callback(remove_folder, folder)
        self._bus = BusServer(folder / BUS_NAME)
        self._opened.callback(self._bus.close, _LINGER_S)
        self._door = self._opened.enter_context(DoorServer(folder))
        self._poller = zmq.Poller()
        for source in (self._bus.socket, self._wake_fd, *self._lifeline_fds):
            self._poller.register(source, zmq.POLLIN)

    def _start_reading(self) -> None:
        self._reception = Reception(
            self._door,
            self._bus,
            self._ledger,
            self._poller,
            store=self._manifest.fingerprint,
            store_path=self._options.store,
            arena_fd=self._options.arena_fd,
            geometry=self._arena.geometry,
        )
        self._readers = Readers(
            self._ledger,
            self._files,
            self._arena,
            num_experts=self._manifest.num_experts,
            num_threads=self._options.threads,
            rate=self._options.rate,
            wake_fd=self._wake_fd,
            timeline=self._timeline,
            faults=self._faults,
        )
        self._opened.callback(self._end_readers)
        self._desk = Desk(
            self._ledger,
            self._reception,
            self._bus,
            num_keys=self._manifest.num_keys,
            stop=self.stop,
            counters=self._counters,
            faults=self._faults,
        )

    def _drain(self) -> None:
        """Close the door, let fills under way finish, say goodbye to everyone."""
        self._reception.close_door()
        self._ledger.stop()
        until = time.monotonic() + DRAIN_S
        while not (self._readers.join(TURN_MS / 1000) or self._is_in_a_hurry or time.monotonic() > until):
            self._count_turn()
        self._desk.say(self._ledger.take_outbox())
        self._reception.tell_everyone(Stopped(self._stop_reason))
        if self._timeline and self._options.timeline:
            self._timeline.write(self._options.timeline)

    def _end_readers(self) -> None:
        """The arena and the files must not go while a thread still reads."""
        self._ledger.stop()
        if not self._readers.join(0.0 if self._is_in_a_hurry else DRAIN_S):
            log.warning("leaving without waiting for a read that has not ended")

    # --- one turn ----------------------------------------------------------------------------

    def _turn(self) -> None:
        ready: dict[object, int] = dict(self._poller.poll(TURN_MS))
        self._count_turn()
        if self._wake_fd in ready:
            os.eventfd_read(self._wake_fd)
        self._reception.bury(ready)
        if self._bus.socket in ready:
            for identity, command in self._bus.receive():
                self._desk.obey(identity, command)
        self._reception.answer_knocks(has_visitors=self._door.fileno() in ready)
        self._desk.say(self._ledger.take_outbox())
        self._bus.send_backlogs()
        if not ready.keys().isdisjoint(self._lifeline_fds):
            self.stop("the process that started this loader has died")
        if self._readers.error:
            raise self._readers.error

    def _counters(self) -> dict[str, int]:
        return {
            "frames": self._arena.geometry.num_frames,
            **asdict(self._readers.snapshot()),
            "reads_directly": int(self._reading.is_direct),
            "bus_ignored": self._bus.num_ignored,
            "bus_garbled": self._bus.num_garbled,
            "bus_lost": self._bus.num_lost,
            "door_refused": self._door.num_refused,
        }

    def _count_turn(self) -> None:
        self._arena.header[H_TURNS] = (int(self._arena.header[H_TURNS]) + 1) & _TURN_MASK


def _check_stride(arena: Arena, manifest: Manifest) -> None:
    if arena.geometry.frame_bytes != manifest.layout.stride:
        raise StoreError(
            f"the arena has frames of {format_size(arena.geometry.frame_bytes)}, the store's experts take "
            f"{format_size(manifest.layout.stride)}: start a new arena for this store"
        )


@contextlib.contextmanager
def _stopped_by_signals(service: Service) -> Iterator[None]:
    """SIGTERM and SIGINT stop the service, in the main thread; elsewhere they are not ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {
        number: signal.signal(number, lambda n, _: service.stop(signal.Signals(n).name))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, action in former.items():
            signal.signal(number, action)
