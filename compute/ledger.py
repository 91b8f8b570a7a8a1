"""The ledger: how tickets end. Reads completion words and events, and ends each ticket once.

Owns the tickets and what was heard but not yet told: ended tickets, faults, counters. Knows no
sockets of its own: the connection to listen to is passed in. Not thread-safe; its client locks.
"""

import select
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from compute.connection import Connection
from compute.tickets import TicketBook
from protocol.arena import (
    DROPPED_FRAME,
    F_GENERATION,
    FRAME_MASK,
    GENERATION_MASK,
    Arena,
    split_completion,
)
from protocol.errors import ProtocolError
from protocol.messages import Completions, Dropped, Fault, Staged, Stats, Stopped

#: A Fault leaves before the word that it explains; this is for its way through the bus.
_REASON_TIMEOUT_S = 0.5
_SHORT_S = 0.005


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """How a ticket ended: with a leased frame of `arena`, or without one (`frame` is -1).

    `fault` is the loader's sentence when it could not stage the expert, "" otherwise.
    """

    ticket: int
    frame: int
    generation: int
    arena: Arena = field(repr=False)
    fault: str = ""

    @property
    def is_dropped(self) -> bool:
        return self.frame < 0

    def is_current(self) -> bool:
        """The frame still holds what the ticket was given: same generation, and not being filled."""
        generation = int(self.arena.frame_table[self.frame, F_GENERATION]) & GENERATION_MASK
        return generation == self.generation and generation % 2 == 0

    def blob(self) -> npt.NDArray[np.uint8]:
        """uint8 [frame_bytes], read-only: the frame itself, valid until the ticket is released."""
        blob: npt.NDArray[np.uint8] = self.arena.frames[self.frame]
        return blob


class Ledger:
    """`completions`: whether tickets end by a word in the arena or by a message."""

    def __init__(self, tickets: TicketBook[Completion], completions: Completions) -> None:
        self.tickets = tickets
        self.num_staged = 0
        self.stats: dict[str, int] = {}
        self.stop_reason = ""
        self._is_by_message = completions == "message"
        self._untold: list[Completion] = []
        self._faults: dict[int, str] = {}

    @property
    def has_news(self) -> bool:
        return bool(self._untold)

    def tell(self) -> list[Completion]:
        """The tickets that have ended since the last call."""
        untold, self._untold = self._untold, []
        return untold

    def collect(self, connection: Connection) -> None:
        """Find the tickets that have ended."""
        if self._is_by_message:
            self.take_events(connection)
        else:
            self.collect_words(connection)

    def collect_words(self, connection: Connection) -> None:
        """Find the tickets whose words are out: the record, however the loader tells of them."""
        words, place = connection.words, self.tickets.place
        found = [word for ticket in self.tickets.asked if (word := words[place(ticket)]) >> 40 == ticket]
        self._await_reasons([word >> 40 for word in found if word & FRAME_MASK == DROPPED_FRAME], connection)
        for word in found:
            self._end(word, connection.arena)

    def take_events(self, connection: Connection) -> None:
        """Take in every message that has arrived. Raises ProtocolError when the loader complains of us."""
        while (event := connection.bus.receive(0)) is not None:
            match event:
                case Staged(words=words):
                    for word in words:
                        self._end(word, connection.arena)
                case Dropped(tickets=tickets):
                    self._close(tickets, connection.arena)
                case Fault(kind="store" | "key", text=text, tickets=tickets):
                    self._faults.update((ticket, text) for ticket in tickets if ticket in self.tickets.asked)
                case Fault(text=text, tickets=tickets):
                    self._faults.update((ticket, "") for ticket in tickets if ticket in self.tickets.asked)
                    raise ProtocolError(f"loader and client disagree: {text}")
                case Stats(question=question, names=names, values=values):
                    self.stats = dict(zip(names, values, strict=True))
                    connection.answered = question
                case Stopped(reason=reason):
                    self.stop_reason = reason

    def forget_loader(self, arena: Arena) -> None:
        """The loader that was told of the cancellations is gone: end those tickets here."""
        self.stop_reason = ""
        self._close([ticket for ticket, asked in self.tickets.asked.items() if asked.is_cancelled], arena)

    def _end(self, word: int, arena: Arena) -> None:
        """A completion word was published."""
        ticket, generation, frame = split_completion(word)
        if frame == DROPPED_FRAME:
            self._close([ticket], arena)
        elif ticket in self.tickets.asked:
            completion = Completion(ticket, frame, generation, arena)
            self.tickets.hold(ticket, completion)
            self._untold.append(completion)
            self.num_staged += 1

    def _close(self, tickets: Iterable[int], arena: Arena) -> None:
        """These ended without a frame: as we wished, with a fault, or because the loader stops."""
        for ticket in tickets:
            if ticket in self.tickets.asked:
                self.tickets.drop(ticket)
                self._untold.append(Completion(ticket, -1, 0, arena, self._faults.pop(ticket, "")))

    def _await_reasons(self, dropped: list[int], connection: Connection) -> None:
        """A word is read at once, the Fault that explains it has to travel.

        What we cancelled needs no reason, and a loader that stops gives none.
        """
        until = time.monotonic() + _REASON_TIMEOUT_S
        while any(not self._is_explained(ticket) for ticket in dropped):
            self.take_events(connection)
            if self.stop_reason or connection.is_dead() or time.monotonic() > until:
                return
            poll_fds((connection.bus.fileno,), _SHORT_S)

    def _is_explained(self, ticket: int) -> bool:
        asked = self.tickets.asked.get(ticket)
        return asked is None or asked.was_cancelled or ticket in self._faults


def poll_fds(fds: Iterable[int], timeout_s: float) -> set[int]:
    """Those of `fds` that are readable (or broken), as soon as there is one."""
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    return {fd for fd, _ in poller.poll(max(timeout_s, 0.0) * 1000)}
