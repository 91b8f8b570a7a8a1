"""The arena: one memfd that loader and clients map, with its frames and its shared words.

Layout, every section 4 KiB aligned: header | clients | leases | completions | frame table | frames.
Words are aligned 8-byte unsigned integers, stored and loaded whole (sound under CPython on
x86-64; elsewhere clients ask for completions by message). The loader alone writes; a client
maps read-only except under CUDA, which must page-lock a writable mapping.

A completion word is `ticket << 40 | generation << 20 | frame`. *Only its own ticket's word
entitles a client to read a frame*: the frame table is the loader's notebook, not a promise.
"""

import errno
import fcntl
import mmap
import os
from dataclasses import astuple, dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from protocol.blob import BLOB_ALIGNMENT, align_up
from protocol.cgroup import tightest_memory_group
from protocol.errors import MemoryBudgetError, ProtocolError
from protocol.units import format_size

Words = npt.NDArray[np.uint64]

MAGIC = 0x73_69_64_65_73_74_67_31  # "sidestg1"
FRAME_BITS = 20
GENERATION_BITS = 20
TICKET_BITS = 24
FRAME_MASK = (1 << FRAME_BITS) - 1
GENERATION_MASK = (1 << GENERATION_BITS) - 1
TICKET_MASK = (1 << TICKET_BITS) - 1
DROPPED_FRAME = FRAME_MASK
MAX_FRAMES = FRAME_MASK  # the last number means "dropped"

_MADV_POPULATE_WRITE = 23
_POPULATE_CHUNK = 256 * 2**20


def completion_word(ticket: int, generation: int, frame: int) -> int:
    """Pack a completion; `generation` is taken modulo 2**20. `frame` DROPPED_FRAME: no expert."""
    return ticket << 40 | (generation & GENERATION_MASK) << FRAME_BITS | frame


def split_completion(word: int) -> tuple[int, int, int]:
    """(ticket, generation modulo 2**20, frame)."""
    return word >> 40, word >> FRAME_BITS & GENERATION_MASK, word & FRAME_MASK


@dataclass(frozen=True, slots=True)
class ArenaGeometry:
    """Sizes from which every offset follows.

    `num_tickets` is the number of ticket places of one client, a power of two: the place of a
    ticket is its low bits, so that a place is used again under another ticket.
    """

    num_frames: int
    frame_bytes: int
    num_clients: int
    num_tickets: int

    def __post_init__(self) -> None:
        if not 0 < self.num_frames <= MAX_FRAMES:
            raise ValueError(f"{self.num_frames} frames; 1 to {MAX_FRAMES} are allowed")
        if self.frame_bytes <= 0 or self.frame_bytes % BLOB_ALIGNMENT:
            raise ValueError(f"frames of {self.frame_bytes} bytes; a multiple of {BLOB_ALIGNMENT} is needed")
        if not 0 < self.num_clients <= 64:
            raise ValueError(f"{self.num_clients} clients; 1 to 64 are allowed")
        if self.num_tickets & (self.num_tickets - 1) or not 0 < self.num_tickets <= 1 << 20:
            raise ValueError(f"{self.num_tickets} ticket places; a power of two up to 2**20 is needed")

    @classmethod
    def for_frames(cls, num_frames: int, frame_bytes: int, num_clients: int = 8) -> Self:
        """Geometry in which one client could hold every frame and await as many again."""
        num_tickets = 1 << max(6, (2 * num_frames - 1).bit_length())
        return cls(num_frames, frame_bytes, num_clients, min(num_tickets, 1 << 20))

    def as_ints(self) -> tuple[int, ...]:
        return astuple(self)

    @property
    def clients_offset(self) -> int:
        return BLOB_ALIGNMENT

    @property
    def leases_offset(self) -> int:
        return self.clients_offset + align_up(self.num_clients * CLIENT_WORDS * 8, BLOB_ALIGNMENT)

    @property
    def completions_offset(self) -> int:
        return self.leases_offset + self._ticket_area

    @property
    def frame_table_offset(self) -> int:
        return self.completions_offset + self._ticket_area

    @property
    def frames_offset(self) -> int:
        return self.frame_table_offset + align_up(self.num_frames * FRAME_WORDS * 8, BLOB_ALIGNMENT)

    @property
    def total_bytes(self) -> int:
        return self.frames_offset + self.num_frames * self.frame_bytes

    @property
    def _ticket_area(self) -> int:
        return align_up(self.num_clients * self.num_tickets * 8, BLOB_ALIGNMENT)


# Words of the header, of one client's row and of one frame's row.
H_MAGIC, H_NUM_FRAMES, H_FRAME_BYTES, H_NUM_CLIENTS, H_NUM_TICKETS, H_EPOCH, H_TURNS = range(7)
H_STORE = slice(7, 9)  # the fingerprint of the store whose experts the frames hold
C_PID, C_START_TIME, C_QUOTA = range(3)
CLIENT_WORDS = 8
F_GENERATION, F_OCCUPANT = range(2)
FRAME_WORDS = 2


def create_arena_fd(geometry: ArenaGeometry) -> int:
    """A sealed memfd of the geometry's size with its header written. The caller owns the fd.

    Raises MemoryBudgetError when the machine has less memory available than the arena needs.
    """
    free = available_memory_bytes()
    if geometry.total_bytes > free:
        raise MemoryBudgetError(
            f"the arena needs {geometry.total_bytes / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free: "
            f"pass a smaller --ram"
        )
    fd = os.memfd_create("sidestage-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, geometry.total_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        with Arena(fd, writable=True, geometry=geometry) as arena:
            arena.header[H_MAGIC] = MAGIC
            arena.header[H_NUM_FRAMES : H_NUM_TICKETS + 1] = geometry.as_ints()
    except BaseException:
        os.close(fd)
        raise
    return fd


def available_memory_bytes() -> int:
    """Memory that can be taken without swapping: MemAvailable, or what a control group leaves if less."""
    with open("/proc/meminfo") as meminfo:
        free = next(int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemAvailable"))
    group = tightest_memory_group()
    return min(free, group.rest_bytes) if group else free


class Arena:
    """A mapping of the arena. Does not own the fd it was given; closing unmaps."""

    def __init__(self, fd: int, *, writable: bool, geometry: ArenaGeometry | None = None) -> None:
        """Map `fd`. Without `geometry` it is read from the header and checked against the size.

        Raises ProtocolError when the memfd is not an arena or is shorter than its header says,
        MemoryBudgetError when it cannot be mapped.
        """
        size = os.fstat(fd).st_size
        self.geometry = geometry or _read_geometry(fd, size)
        if size != self.geometry.total_bytes:
            raise ProtocolError(f"arena of {size} bytes, its geometry says {self.geometry.total_bytes}")
        try:
            self._map = mmap.mmap(fd, size, prot=mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))
        except OSError as error:
            raise MemoryBudgetError(
                f"the arena of {format_size(size)} does not fit into this process ({error.strerror}): "
                f"raise its limit (ulimit -v), or pass a smaller --ram"
            ) from error
        g = self.geometry
        self.header: Words = self._words(0, 512)
        self.clients: Words = self._words(g.clients_offset, g.num_clients, CLIENT_WORDS)
        self.leases: Words = self._words(g.leases_offset, g.num_clients, g.num_tickets)
        self.completions: Words = self._words(g.completions_offset, g.num_clients, g.num_tickets)
        self.frame_table: Words = self._words(g.frame_table_offset, g.num_frames, FRAME_WORDS)
        #: uint8 [num_frames, frame_bytes]
        self.frames: npt.NDArray[np.uint8] = np.frombuffer(
            self._map, np.uint8, g.num_frames * g.frame_bytes, g.frames_offset
        ).reshape(g.num_frames, g.frame_bytes)

    def populate(self) -> None:
        """Take every page now, so that a full machine is an error here and not a SIGBUS later.

        Raises MemoryBudgetError.
        """
        for start in range(0, len(self._map), _POPULATE_CHUNK):
            length = min(_POPULATE_CHUNK, len(self._map) - start)
            try:
                self._map.madvise(_MADV_POPULATE_WRITE, start, length)
            except OSError as error:
                # A kernel before 5.14, or a sandbox's, does not know it: a machine that is full kills there.
                if error.errno == errno.EINVAL:
                    self._touch(start, length)
                    continue
                raise MemoryBudgetError(
                    f"the machine ran out of memory after {start / 2**30:.2f} of "
                    f"{len(self._map) / 2**30:.2f} GiB of the arena ({error}): pass a smaller --ram"
                ) from error

    def _touch(self, start: int, length: int) -> None:
        """Write to each of these pages what it holds; nobody else has the arena yet."""
        pages = np.frombuffer(self._map, np.uint8, length, start)[:: mmap.PAGESIZE]
        pages |= 0

    def close(self) -> None:
        """Drop the views and unmap. Views handed out elsewhere keep the mapping alive until they go."""
        empty = np.empty(0, np.uint64)
        self.header = self.clients = self.leases = self.completions = self.frame_table = empty
        self.frames = np.empty((0, 0), np.uint8)
        try:
            self._map.close()
        except BufferError:
            return  # someone still reads a frame: the map goes with the last view

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _words(self, offset: int, *shape: int) -> Words:
        count = int(np.prod(shape))
        return np.frombuffer(self._map, np.uint64, count, offset).reshape(shape)


def _read_geometry(fd: int, size: int) -> ArenaGeometry:
    header = np.frombuffer(os.pread(fd, 64, 0).ljust(64, b"\0"), np.uint64)
    if int(header[H_MAGIC]) != MAGIC:
        raise ProtocolError("the file handed over is not a sidestage arena")
    try:
        geometry = ArenaGeometry(*(int(word) for word in header[H_NUM_FRAMES : H_NUM_TICKETS + 1]))
    except ValueError as error:
        raise ProtocolError(f"damaged arena header: {error}") from error
    if geometry.total_bytes != size:
        raise ProtocolError(f"arena of {size} bytes, its header says {geometry.total_bytes}")
    return geometry
