"""Every message that crosses the border, and nothing else.

Commands are imperative and go from a client to the loader; events are in the past tense and
come back. A layer-step sends at most two messages, never one per expert: `Fetch` carries
everything a step has to say. Fields are ints, strings, bytes and tuples of them: no weights.

An expert travels as its *key*, `ExpertId.key`; a ticket is one outstanding request of one
client: the client chooses it, and it ends in exactly one of Staged or Dropped.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

PROTOCOL_VERSION = 1

Completions = Literal["word", "message"]


class ExpertId(NamedTuple):
    """One expert; `layer` counts MoE layers."""

    layer: int
    expert: int

    def key(self, num_experts: int) -> int:
        """The flat number used in messages and tables: layer * num_experts + expert."""
        return self.layer * num_experts + self.expert

    @classmethod
    def from_key(cls, key: int, num_experts: int) -> "ExpertId":
        return cls(*divmod(key, num_experts))


@dataclass(frozen=True, slots=True)
class Request:
    """Ask for expert `key` under `ticket`; `deadline` is the layer-step that will need it."""

    ticket: int
    key: int
    deadline: int


# --- the door: one exchange over a Unix socket, before the bus ---------------------------------


@dataclass(frozen=True, slots=True)
class Knock:
    """Ask to come in. `quota`: frames this client may hold or await at once; 0 for an observer, who
    may ask for Snapshots and for nothing else.

    `store`: the store's fingerprint the client was built for, "" for whichever is served.
    `resume`: the client number held before the loader was restarted, -1 for a new client.
    `completions`: whether tickets end by a word in the arena or by a message.
    """

    version: int
    quota: int
    store: str
    completions: Completions
    resume: int


@dataclass(frozen=True, slots=True)
class Welcome:
    """The client is in. The arena's memfd and the client's eventfd come with it (SCM_RIGHTS).

    `identity` names the client on the bus at `endpoint`; `geometry` is the arena's, as ints in
    the order of ArenaGeometry's fields; `store_path` is absolute.
    """

    version: int
    client: int
    epoch: int
    identity: bytes
    endpoint: str
    store: str
    store_path: str
    geometry: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """The client may not come in; `text` is the sentence for its user."""

    text: str


# --- commands ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """First message on the bus. `held`: tickets whose leases the client still has (after a
    restart of the loader); every other lease of this client comes back."""

    client: int
    held: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fetch:
    """One layer-step's orders, obeyed in this order: released, evicted, cancel, promote, demand,
    prefetch. `promote`, `cancel` and `released` are tickets; `evicted` are keys: a notice that
    the client's policy let them go."""

    demand: tuple[Request, ...] = ()
    prefetch: tuple[Request, ...] = ()
    promote: tuple[int, ...] = ()
    cancel: tuple[int, ...] = ()
    released: tuple[int, ...] = ()
    evicted: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Release:
    """The leases of these tickets come back."""

    tickets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Ask for Stats, which tell the `question` that they answer."""

    question: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What the client's cache has done so far, told at most once a second, for whoever observes.

    `about` are words on how it runs; `names` and `values` its counters; `resident` has a bit for
    each key in a slot, the lowest key in the highest bit of the first byte.
    """

    about: str
    names: tuple[str, ...]
    values: tuple[int, ...]
    resident: bytes


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The client leaves: its tickets are cancelled and its leases come back."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Stop the loader. Obeyed only from the owner that started it."""


# --- events ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """Hello was understood; fetches may be sent."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Staged:
    """These completion words were published (word as in arena.py: ticket, frame, generation)."""

    words: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Dropped:
    """These tickets ended without an expert, because they were cancelled."""

    tickets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters of the loader and of the asking client, by name, in answer to the Snapshot `question`."""

    question: int
    names: tuple[str, ...]
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reported:
    """A client as an observer may see it: its last Report, `age_us` ago (-1: it made none).

    Observers get one for each client that is in, before the Stats that answer their Snapshot.
    """

    client: int
    pid: int
    quota: int
    age_us: int
    about: str
    names: tuple[str, ...]
    values: tuple[int, ...]
    resident: bytes


@dataclass(frozen=True, slots=True)
class Fault:
    """Something went wrong that concerns this client. `tickets` ended in Dropped with it."""

    kind: str
    text: str
    tickets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stopped:
    """The loader stops; no further event follows."""

    reason: str


DoorMessage = Knock | Welcome | Refused
Command = Hello | Fetch | Release | Snapshot | Report | Goodbye | Shutdown
Event = Ready | Staged | Dropped | Stats | Reported | Fault | Stopped
Message = DoorMessage | Command | Event
