"""The two ends of a linked transport: frames that experts wait in, and the link that carries them away.

Contracts only. `Staging` and `PinnedFrames` are frames, `ThrottledLink` and `CudaLink` are links.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from compute.ledger import Completion
from compute.transports.chunks import Chunk
from compute.transports.staging import Fetching, Settled


class Frames(Protocol):
    """Where the expert for a slot waits for the link: `Staging`, or `PinnedFrames`. Not thread-safe."""

    @property
    def room(self) -> int: ...
    def __contains__(self, slot: int) -> bool: ...
    def __getitem__(self, slot: int) -> Fetching: ...
    def staged(self, slot: int) -> Completion: ...
    def flow_id(self, slot: int) -> int: ...
    def add(self, slot: int, key: int, deadline: int, *, is_demand: bool) -> None: ...
    def promote(self, slot: int, deadline: int) -> None: ...
    def cancel(self, slot: int) -> bool: ...
    def release(self, slot: int) -> Fetching: ...
    def ask_again(self, slot: int) -> None: ...
    def note_evicted(self, key: int) -> None: ...
    def flush(self, *, only_to_ask: bool = False) -> None: ...
    def settle(self, completions: Iterable[Completion]) -> Settled: ...
    def hear(self, wake: Sequence[int]) -> list[Completion]:
        """Block until there is news of frames, or one of the fds is readable. Needs no lock."""

    def stats(self) -> dict[str, int]:
        """Counters of whoever fills the frames. Needs no lock."""


class Link(Protocol):
    """Carries chunks into slots, first in, first out; the job of a chunk is its slot's number."""

    #: readable when it is time to look whether something has crossed
    fd: int

    @property
    def is_asynchronous(self) -> bool:
        """`send` only puts a copy in a device's queue: the compute thread may drive this link too."""

    @property
    def is_busy(self) -> bool:
        """Something is on its way."""

    @property
    def busy_ns(self) -> int:
        """For how long something was on its way."""

    def seconds(self, num_bytes: int) -> float:
        """How long so many bytes take at most, where the speed is known; else 0."""

    def vacate(self, slots: Collection[int]) -> None:
        """Compute has asked for its last use of these, and may not be done with it."""

    def send(self, chunk: Chunk, source: Completion, ready_ns: int, flow_id: int | None) -> None:
        """Put the chunk on its way out of `source`'s frame; it could have gone since `ready_ns`."""

    def crossed(self) -> Chunk | None:
        """The next chunk that has crossed, in the order they were sent. Never blocks."""

    def arm(self) -> None:
        """Make `fd` ring for the first chunk on its way."""

    def rest(self) -> None:
        """Let a moment pass that is short beside a chunk."""

    def close(self, timeout_s: float) -> None:
        """Wait for what is on its way, then let go. Raises RuntimeError when it does not arrive."""
