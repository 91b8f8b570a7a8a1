"""Pinned frames: every expert lies in a frame of its own, for good. No loader is on the path.

The frames are leased once, when they are filled, and stay so until the client closes. What a
transport asks for is STAGED at once.
"""

import time
from collections.abc import Iterable, Mapping, Sequence

from compute.ledger import Completion, poll_fds
from compute.transports.staging import Fetching, Settled
from protocol.errors import ProtocolError
from protocol.timeline import Timeline

#: Far above every ticket's arrow.
_FIRST_FLOW_ID = 1 << 40
_TICK_S = 1.0


class PinnedFrames:
    """`frame_of`: each expert's frame, by key; `stats`: the loader's counters after it filled them."""

    def __init__(
        self, frame_of: Mapping[int, Completion], stats: Mapping[str, int], timeline: Timeline | None = None
    ) -> None:
        self._frame_of = frame_of
        self._stats = dict(stats)
        self._timeline = timeline
        self._fetches: dict[int, Fetching] = {}
        self._flow_of: dict[int, int] = {}
        self._staged: list[int] = []
        self._num_fetches = 0

    @property
    def room(self) -> int:
        return len(self._frame_of)

    def __contains__(self, slot: int) -> bool:
        return slot in self._fetches

    def __getitem__(self, slot: int) -> Fetching:
        return self._fetches[slot]

    def staged(self, slot: int) -> Completion:
        completion = self._fetches[slot].completion
        assert completion is not None, slot
        return completion

    def flow_id(self, slot: int) -> int:
        return self._flow_of[slot]

    def add(self, slot: int, key: int, deadline: int, *, is_demand: bool) -> None:
        assert slot not in self._fetches, f"slot {slot} awaits an expert already"
        self._fetches[slot] = Fetching(key, deadline, is_demand, completion=self._frame_of[key])
        self._staged.append(slot)
        self._flow_of[slot] = _FIRST_FLOW_ID + self._num_fetches
        self._num_fetches += 1
        if self._timeline:
            now_ns = time.monotonic_ns()
            self._timeline.span("fetch", "fetch", now_ns, now_ns, experts=1)
            self._timeline.flow("s", self._flow_of[slot], "fetch", now_ns)

    def promote(self, slot: int, deadline: int) -> None:
        fetch = self._fetches.get(slot)
        if fetch:
            fetch.is_demand, fetch.is_cancelled, fetch.deadline = True, False, deadline

    def cancel(self, slot: int) -> bool:
        """False: it is for the link's queue to say whether it comes in time."""
        if slot in self._fetches:
            self._fetches[slot].is_cancelled = True
        return False

    def release(self, slot: int) -> Fetching:
        return self._fetches.pop(slot)

    def ask_again(self, slot: int) -> None:
        """There is nobody to ask: raises ProtocolError."""
        frame = self.staged(slot).frame
        raise ProtocolError(f"frame {frame} changed under its lease: the loader is broken")

    def note_evicted(self, key: int) -> None:
        pass  # nobody has to know

    def flush(self, *, only_to_ask: bool = False) -> None:
        pass  # nobody is asked

    def settle(self, completions: Iterable[Completion]) -> Settled:
        staged, self._staged = self._staged, []
        return Settled(staged=staged)

    def hear(self, wake: Sequence[int]) -> list[Completion]:
        poll_fds(wake, _TICK_S)
        return []

    def stats(self) -> dict[str, int]:
        return dict(self._stats)
