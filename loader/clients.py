"""The clients that are in: their rows in the arena, and what the loader keeps beside a row.

A row is pid, start time and quota: enough for a successor to tell after a crash whether the
client still lives. Knows nothing of frames; the quotas never promise more frames than there are.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from protocol import pidfd as watched
from protocol.arena import C_PID, C_QUOTA, C_START_TIME, Arena
from protocol.errors import RefusedError
from protocol.messages import Report


class NoRoomError(RefusedError):
    """There is no place for this client now; there may be when another has left."""


@dataclass(slots=True)
class Client:
    """One client. `identity` and `eventfd` are empty and -1 until it has come (back) in.

    `tickets`: the ticket in each place that is in use. `by_word`: it reads completion words and
    sleeps on its eventfd; otherwise it is told by messages. `num_heard`: commands since its Hello.
    `report` is the last one that it made, at `reported_ns`.
    """

    number: int
    pid: int
    quota: int
    pidfd: int
    eventfd: int = -1
    identity: bytes = b""
    by_word: bool = True
    is_greeted: bool = False
    num_heard: int = 0
    tickets: dict[int, int] = field(default_factory=dict)
    num_fetched: int = 0
    num_host_hits: int = 0
    report: Report | None = None
    reported_ns: int = 0

    @property
    def is_observer(self) -> bool:
        """It has no row in the arena, no frames and no tickets: it looks on."""
        return self.number < 0

    def close(self) -> None:
        """Close the client's fds. Idempotent."""
        for fd in (self.pidfd, self.eventfd):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.eventfd = -1


class ClientTable:
    """Who is in, by number. The only writer of the arena's client rows."""

    def __init__(self, arena: Arena) -> None:
        """Take over the rows of an arena: clients that still live stay in, awaited to come back."""
        self._rows = arena.clients
        self._num_frames = arena.geometry.num_frames
        self._num_tickets = arena.geometry.num_tickets
        self._clients: dict[int, Client] = {}
        for number in range(arena.geometry.num_clients):
            self._recover(number)

    def __getitem__(self, number: int) -> Client:
        return self._clients[number]

    def find(self, number: int) -> Client | None:
        """The client with this number, if it is in."""
        return self._clients.get(number)

    def __len__(self) -> int:
        return len(self._clients)

    def __iter__(self) -> Iterator[Client]:
        return iter(list(self._clients.values()))

    @property
    def promised(self) -> int:
        """Frames that the clients' quotas guarantee them."""
        return sum(client.quota for client in self._clients.values())

    def admit(self, pid: int, quota: int, resume: int) -> Client:
        """Give the process a row: the one it had (`resume`), or a free one (-1). Then `seat` it.

        Raises RefusedError with the sentence for its user.
        """
        start_time = process_start_time(pid)
        if start_time is None:
            raise RefusedError(f"process {pid} is gone")
        number = self._number_for(pid, start_time, resume)
        former = self._clients.get(number)
        self._check_quota(quota, former.quota if former else 0)
        client = Client(number, pid, quota, open_pidfd(pid))
        if former:
            former.close()
        self._clients[number] = client
        self._rows[number, C_QUOTA] = quota
        self._rows[number, C_START_TIME] = start_time
        return client

    def seat(self, client: Client) -> None:
        """The client knows that it is in. Without its pid a row is no row, should the loader crash."""
        self._rows[client.number, C_PID] = client.pid

    def remove(self, client: Client) -> None:
        """The row is free again."""
        self._rows[client.number, C_PID] = 0
        del self._clients[client.number]
        client.close()

    def close(self) -> None:
        """Close every fd and let go of the arena; the rows stay for a successor. Idempotent."""
        for client in self:
            client.close()
        self._rows = self._rows[:0].copy()

    def _recover(self, number: int) -> None:
        pid, start_time = int(self._rows[number, C_PID]), int(self._rows[number, C_START_TIME])
        if not pid:
            return
        try:
            pidfd = open_pidfd(pid)
        except RefusedError:
            pidfd = -1
        if pidfd >= 0 and process_start_time(pid) == start_time:
            self._clients[number] = Client(number, pid, int(self._rows[number, C_QUOTA]), pidfd)
            return
        self._rows[number, C_PID] = 0
        if pidfd >= 0:
            os.close(pidfd)

    def _number_for(self, pid: int, start_time: int, resume: int) -> int:
        if 0 <= resume < len(self._rows):
            former = self._clients.get(resume)
            if former is None or (former.pid == pid and int(self._rows[resume, C_START_TIME]) == start_time):
                return resume
            raise RefusedError(f"client number {resume} belongs to another process: knock as a new client")
        if resume != -1:
            raise RefusedError(f"there is no client number {resume}: knock as a new client")
        number = next((n for n in range(len(self._rows)) if n not in self._clients), None)
        if number is None:
            raise NoRoomError(
                f"{len(self._rows)} clients are in, no more fit: close one, or start another loader"
            )
        return number

    def _check_quota(self, quota: int, already_promised: int) -> None:
        most = min(self._num_frames, self._num_tickets)
        if not 0 < quota <= most:
            raise RefusedError(
                f"{quota} frames asked of an arena that grants 1 to {most}: ask for fewer slots"
            )
        left = self._num_frames - (self.promised - already_promised)
        if quota > left:
            raise NoRoomError(
                f"{quota} frames asked, {left} of {self._num_frames} are not promised to other clients: "
                f"ask for fewer slots, or give the loader more --ram"
            )


def process_start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when there is none.

    With the pid it names one process for ever, although pids come round again.
    """
    try:
        stat = Path("/proc", str(pid), "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(b")")[2].split()[19])


def open_pidfd(pid: int) -> int:
    """Raises RefusedError for a process that cannot be watched."""
    try:
        return watched.open_pidfd(pid)
    except OSError as error:
        raise RefusedError(f"process {pid} cannot be watched ({error.strerror})") from error
