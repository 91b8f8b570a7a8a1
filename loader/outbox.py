"""The outbox: what the ledger wants said to clients until the service's loop says it."""

from dataclasses import dataclass, field

from loader.queue import TicketId
from protocol.messages import Fault


@dataclass(slots=True)
class Outbox:
    """What is to be said, by client number.

    `doomed` are tickets that end in Dropped once the faults that explain it have been sent.
    """

    faults: list[tuple[int, Fault]] = field(default_factory=list)
    staged: dict[int, list[int]] = field(default_factory=dict)
    dropped: dict[int, list[int]] = field(default_factory=dict)
    doomed: list[TicketId] = field(default_factory=list)

    def forget(self, client: int) -> None:
        """There is nobody any more to say it to."""
        self.faults = [fault for fault in self.faults if fault[0] != client]
        self.doomed = [ticket for ticket in self.doomed if ticket.client != client]
        self.staged.pop(client, None)
        self.dropped.pop(client, None)

    def __bool__(self) -> bool:
        return bool(self.faults or self.staged or self.dropped or self.doomed)
