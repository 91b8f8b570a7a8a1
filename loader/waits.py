"""How long tickets waited for their experts, from the asking to the publishing. Knows no clock.

Counts those that had to be read; an expert that lies in a frame already is nobody's wait.
"""

from dataclasses import dataclass, field

from loader.queue import TicketId


@dataclass(slots=True)
class Waits:
    """`count` tickets that ended with an expert waited `total_ns` in all."""

    count: int = 0
    total_ns: int = 0
    _since_ns: dict[TicketId, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many wait now."""
        return len(self._since_ns)

    def begin(self, ticket: TicketId, now_ns: int) -> None:
        """The ticket was asked, and its expert has to be read."""
        self._since_ns[ticket] = now_ns

    def end(self, ticket: TicketId, now_ns: int) -> None:
        """Its expert is there."""
        self.total_ns += now_ns - self._since_ns.pop(ticket)
        self.count += 1

    def forget(self, ticket: TicketId) -> None:
        """It ended without an expert. Nothing happens for one that never waited."""
        self._since_ns.pop(ticket, None)
