"""A real loader process for tests, and a client that speaks the wire protocol and nothing more."""

import contextlib
import os
import select
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self, TypeVar

from protocol.arena import DROPPED_FRAME, H_TURNS, Arena, ArenaGeometry, create_arena_fd, split_completion
from protocol.channel import BusClient
from protocol.child import Child
from protocol.door import enter
from protocol.folder import create_folder, remove_folder
from protocol.manifest import Manifest
from protocol.messages import (
    PROTOCOL_VERSION,
    Command,
    Completions,
    Event,
    Fetch,
    Goodbye,
    Hello,
    Knock,
    Ready,
    Request,
    Snapshot,
    Staged,
    Stats,
)

TIMEOUT_S = 20.0

T = TypeVar("T", bound=Event)


class LoaderProcess:
    """`python -P -m loader serve` on an arena that outlives it."""

    def __init__(
        self, store: Path, num_frames: int, extra: Sequence[str] = (), num_clients: int = 8, threads: int = 2
    ) -> None:
        self.manifest = Manifest.read(store)
        self.store = store
        self.folder = create_folder()
        geometry = ArenaGeometry.for_frames(num_frames, self.manifest.layout.stride, num_clients)
        self.arena_fd = create_arena_fd(geometry)
        self.arena = Arena(self.arena_fd, writable=True)
        self._extra = [*extra, "--threads", str(threads)]
        self.start()

    def start(self) -> None:
        argv = [sys.executable, "-P", "-m", "loader", "serve", "--store", str(self.store)]
        argv += ["--arena-fd", str(self.arena_fd), "--folder", str(self.folder), *self._extra]
        self.child = Child.spawn(argv, name="the loader", pass_fds=[self.arena_fd])
        self.facts = self.child.wait_ready()

    @property
    def endpoint(self) -> str:
        return str(self.facts["endpoint"])

    @property
    def turns(self) -> int:
        return int(self.arena.header[H_TURNS])

    def client(self, quota: int, completions: Completions = "word") -> "WireClient":
        return WireClient(self.endpoint, quota, completions=completions)

    def close(self) -> None:
        self.child.close()
        remove_folder(self.folder)
        self.arena.close()
        os.close(self.arena_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class WireClient:
    """Knock, Hello, and then raw commands and words. Tickets are numbered one after the other."""

    def __init__(
        self,
        endpoint: str,
        quota: int,
        *,
        completions: Completions = "word",
        store: str = "",
        resume: int = -1,
        held: tuple[int, ...] = (),
        version: int = PROTOCOL_VERSION,
    ) -> None:
        admission = enter(endpoint, Knock(version, quota, store, completions, resume), TIMEOUT_S)
        self.welcome = admission.welcome
        self.number = self.welcome.client
        self.eventfd = admission.eventfd
        self.arena = Arena(admission.arena_fd, writable=False)
        os.close(admission.arena_fd)
        self.num_tickets = self.arena.geometry.num_tickets
        self._next = self.num_tickets
        self.bus = BusClient(self.welcome.endpoint, self.welcome.identity, TIMEOUT_S)
        self.bus.send(Hello(self.number, held))
        self.ready = self.expect(Ready)

    def ticket(self) -> int:
        ticket, self._next = self._next, self._next + 1
        return ticket

    def send(self, command: Command) -> None:
        self.bus.send(command)

    def demand(self, *keys: int, deadline: int = 0) -> list[int]:
        """Demand `keys` in one Fetch; returns their tickets."""
        tickets = [self.ticket() for _ in keys]
        self.send(Fetch(demand=tuple(Request(t, k, deadline) for t, k in zip(tickets, keys, strict=True))))
        return tickets

    def prefetch(self, *keys: int, deadline: int = 1) -> list[int]:
        tickets = [self.ticket() for _ in keys]
        self.send(Fetch(prefetch=tuple(Request(t, k, deadline) for t, k in zip(tickets, keys, strict=True))))
        return tickets

    def word(self, ticket: int) -> int:
        """The ticket's completion word, 0 while there is none."""
        word = int(self.arena.completions[self.number, ticket & (self.num_tickets - 1)])
        return word if word >> 40 == ticket else 0

    def wait(self, ticket: int, timeout_s: float = TIMEOUT_S) -> int | None:
        """Wait as clients do; the ticket's frame, or None when it was dropped."""
        until = time.monotonic() + timeout_s
        while not self.word(ticket):
            left = until - time.monotonic()
            assert left > 0, f"no completion of ticket {ticket} within {timeout_s} s"
            if select.select([self.eventfd], [], [], left)[0]:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self.eventfd)
        _, _, frame = split_completion(self.word(ticket))
        return None if frame == DROPPED_FRAME else frame

    def blob(self, ticket: int) -> bytes:
        """Wait for the ticket and copy its frame."""
        frame = self.wait(ticket)
        assert frame is not None, f"ticket {ticket} was dropped"
        return self.arena.frames[frame].tobytes()

    def events(self, timeout_s: float = TIMEOUT_S) -> Iterator[Event]:
        until = time.monotonic() + timeout_s
        while (left := until - time.monotonic()) > 0:
            event = self.bus.receive(left)
            if event is not None:
                yield event

    def expect(self, kind: type[T], timeout_s: float = TIMEOUT_S) -> T:
        """The next event of this kind; others before it are passed over."""
        for event in self.events(timeout_s):
            if isinstance(event, kind):
                return event
        raise AssertionError(f"no {kind.__name__} within {timeout_s} s")

    def staged_words(self, tickets: Iterable[int]) -> dict[int, int]:
        """Wait for Staged messages until all of `tickets` are there: ticket -> word."""
        missing, words = set(tickets), {}
        while missing:
            for word in self.expect(Staged).words:
                words[word >> 40] = word
                missing.discard(word >> 40)
        return words

    def stats(self) -> dict[str, int]:
        self.send(Snapshot())
        stats = self.expect(Stats)
        return dict(zip(stats.names, stats.values, strict=True))

    def close(self, goodbye: bool = True) -> None:
        if goodbye:
            self.send(Goodbye())
        self.bus.close()
        self.arena.close()
        os.close(self.eventfd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
