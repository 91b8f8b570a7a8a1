"""The frame table: which expert is in which frame, and who has leased it.

A frame's life: FREE -> FILLING -> SEALED(generation) -> FILLING ..., by `begin_fill`, `seal` or
`abandon`. Everything a successor needs after a crash is in the arena's words, written in an order
that is right at every instant; what is kept beside them (reference counts, recency) follows from
them. Unleased sealed frames are the host cache; the least recently released is refilled first.
"""

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np

from loader.queue import TicketId
from protocol.arena import (
    DROPPED_FRAME,
    F_GENERATION,
    F_OCCUPANT,
    GENERATION_MASK,
    H_EPOCH,
    H_STORE,
    TICKET_MASK,
    Arena,
    completion_word,
    split_completion,
)
from protocol.errors import StoreError


class FrameTable:
    """The loader's notebook over an arena. One thread at a time.

    In the arena a generation is odd while the frame is FILLING and only ever grows; the occupant
    is key + 1, or 0 when the frame is FREE. A lease word is the completion word that its ticket
    gets, or has got: a lease is *published* when the two are equal.
    """

    def __init__(self, arena: Arena, store: str) -> None:
        """Take over `arena` for the store with fingerprint `store`; call `recover` before use.

        Raises StoreError when its frames hold experts of another store.
        """
        self._arena = arena
        # memoryviews: single words come out as ints, six times as fast as from arrays
        self._frames = arena.frame_table.data
        self._leases = arena.leases.data
        self._completions = arena.completions.data
        self._place_mask = arena.geometry.num_tickets - 1
        self._num_leases = [0] * arena.geometry.num_frames
        self._frame_of: dict[int, int] = {}
        self._free: list[int] = []
        self._idle: OrderedDict[int, int] = OrderedDict()  # frame -> key
        self._num_leased = 0
        self._claim(store)

    def close(self) -> None:
        """Let go of the arena, which cannot be unmapped before. Idempotent."""
        for words in (self._frames, self._leases, self._completions):
            words.release()

    # --- asking ------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """How many loaders this arena has seen."""
        return int(self._arena.header[H_EPOCH])

    @property
    def num_sealed(self) -> int:
        return len(self._frame_of)

    @property
    def num_leased(self) -> int:
        """Frames, sealed or FILLING, with at least one lease."""
        return self._num_leased

    @property
    def has_room(self) -> bool:
        """Some frame may be filled: FREE, or sealed and leased by nobody."""
        return bool(self._free or self._idle)

    def sealed_frame(self, key: int) -> int | None:
        """The frame that holds expert `key`, ready to be leased."""
        return self._frame_of.get(key)

    def place(self, ticket: int) -> int:
        """Where in a client's ticket area the ticket has its words."""
        return ticket & self._place_mask

    def leased_tickets(self, client: int) -> list[int]:
        """The client's tickets with a lease."""
        row = self._arena.leases[client]
        return [int(word) >> 40 for word in row[row != 0]]

    def has_lease(self, ticket: TicketId) -> bool:
        return self._leases[ticket.client, ticket.ticket & self._place_mask] >> 40 == ticket.ticket

    def is_published(self, ticket: TicketId) -> bool:
        """The ticket's completion word is out, whether staged or dropped."""
        return self._completions[ticket.client, ticket.ticket & self._place_mask] >> 40 == ticket.ticket

    # --- leases ------------------------------------------------------------------------------

    def lease(self, ticket: TicketId, frame: int) -> None:
        """Grant the right to `frame`, sealed or FILLING, until `release`."""
        generation = self._frames[frame, F_GENERATION]
        self._write_lease(ticket, frame, generation + (generation & 1))

    def publish(self, ticket: TicketId) -> int:
        """Tell the ticket's client that its frame is ready. Returns the completion word."""
        place = self.place(ticket.ticket)
        word = self._leases[ticket.client, place]
        self._completions[ticket.client, place] = word
        return word

    def publish_dropped(self, ticket: TicketId) -> None:
        """Tell the ticket's client that no frame will come."""
        word = completion_word(ticket.ticket, 0, DROPPED_FRAME)
        self._completions[ticket.client, self.place(ticket.ticket)] = word

    def release(self, ticket: TicketId) -> bool:
        """The lease comes back. False: the ticket had none."""
        place = self.place(ticket.ticket)
        number, _, frame = split_completion(self._leases[ticket.client, place])
        if number != ticket.ticket or not number:
            return False
        self._leases[ticket.client, place] = 0
        self._num_leases[frame] -= 1
        if not self._num_leases[frame]:
            self._num_leased -= 1
            if not self._is_filling(frame):
                self._idle[frame] = self._key_in(frame)
        return True

    def clear_client(self, client: int) -> None:
        """Take back every lease of the client and blank its ticket area for the next one."""
        for ticket in self.leased_tickets(client):
            self.release(TicketId(client, ticket))
        self._arena.completions[client] = 0

    def touch(self, key: int) -> None:
        """A client let `key` go: should nobody lease it, it is the last to be refilled."""
        frame = self._frame_of.get(key)
        if frame is not None and frame in self._idle:
            self._idle.move_to_end(frame)

    # --- a frame's edges ---------------------------------------------------------------------

    def begin_fill(self, key: int, tickets: Iterable[TicketId]) -> int:
        """FREE or SEALED -> FILLING, leased to `tickets` before anything else is touched.

        Needs `has_room`. Returns the frame.
        """
        frame = self._free.pop() if self._free else self._forget_oldest()
        generation = self._frames[frame, F_GENERATION]
        for ticket in tickets:
            self._write_lease(ticket, frame, generation + 2)
        self._frames[frame, F_GENERATION] = generation + 1
        self._frames[frame, F_OCCUPANT] = key + 1
        return frame

    def seal(self, frame: int) -> None:
        """FILLING -> SEALED: the bytes are there and will not change under this generation."""
        assert self._is_filling(frame), frame
        self._frames[frame, F_GENERATION] += 1
        key = self._key_in(frame)
        self._frame_of[key] = frame
        if not self._num_leases[frame]:
            self._idle[frame] = key

    def abandon(self, frame: int) -> None:
        """FILLING -> FREE: no expert came. Its leases must have been released."""
        assert self._is_filling(frame) and not self._num_leases[frame], frame
        self._vacate(frame)
        self._free.append(frame)

    # --- after a crash -----------------------------------------------------------------------

    def recover(self, living: Iterable[int]) -> None:
        """Make the arena whole again after its last loader, and begin a new epoch.

        FILLING becomes FREE; leases that were never published, and all those of clients outside
        `living`, come back; sealed frames stay usable.
        """
        self._arena.header[H_EPOCH] += np.uint64(1)
        for client in set(range(self._arena.geometry.num_clients)).difference(living):
            self._arena.leases[client] = 0
            self._arena.completions[client] = 0
        self._arena.leases[self._arena.leases != self._arena.completions] = 0
        self._sort_frames()
        for client, place in np.argwhere(self._arena.leases):
            self._count_recovered_lease(int(client), int(place))
        self._idle = OrderedDict(
            (frame, key) for key, frame in self._frame_of.items() if not self._num_leases[frame]
        )

    def _claim(self, store: str) -> None:
        ours = np.frombuffer(bytes.fromhex(store), np.uint64)
        held = self._arena.header[H_STORE]
        if held.any() and not np.array_equal(held, ours):
            raise StoreError(
                f"the arena holds experts of another store ({held.tobytes().hex()}, not {store}): "
                f"start a new arena"
            )
        held[:] = ours

    def _sort_frames(self) -> None:
        for frame, (generation, occupant) in enumerate(self._arena.frame_table.tolist()):
            if generation & 1:
                self._vacate(frame)
            if generation & 1 or not occupant or occupant - 1 in self._frame_of:
                self._free.append(frame)
            else:
                self._frame_of[occupant - 1] = frame
        self._free.reverse()  # the lowest first

    def _count_recovered_lease(self, client: int, place: int) -> None:
        number, generation, frame = split_completion(self._leases[client, place])
        is_sound = (
            frame < len(self._num_leases)
            and self._frame_of.get(self._key_in(frame)) == frame
            and self._frames[frame, F_GENERATION] & GENERATION_MASK == generation
            and number & self._place_mask == place
        )
        if is_sound:
            self._num_leases[frame] += 1
            self._num_leased += self._num_leases[frame] == 1
        else:
            self._leases[client, place] = 0

    # --- words -------------------------------------------------------------------------------

    def _write_lease(self, ticket: TicketId, frame: int, generation: int) -> None:
        assert 0 < ticket.ticket <= TICKET_MASK, ticket
        word = completion_word(ticket.ticket, generation, frame)
        self._leases[ticket.client, self.place(ticket.ticket)] = word
        if not self._num_leases[frame]:
            self._num_leased += 1
            self._idle.pop(frame, None)
        self._num_leases[frame] += 1

    def _forget_oldest(self) -> int:
        frame, key = self._idle.popitem(last=False)
        del self._frame_of[key]
        return frame

    def _vacate(self, frame: int) -> None:
        self._frames[frame, F_OCCUPANT] = 0
        self._frames[frame, F_GENERATION] += 1

    def _is_filling(self, frame: int) -> bool:
        return bool(self._frames[frame, F_GENERATION] & 1)

    def _key_in(self, frame: int) -> int:
        return self._frames[frame, F_OCCUPANT] - 1
