"""A sample: what one look at a loader and its clients found. Numbers as they were told, nothing derived."""

from collections.abc import Mapping
from dataclasses import dataclass

from protocol.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Served:
    """What does not change while a loader lives; `source` is the checkpoint's name."""

    endpoint: str
    pid: int
    source: str
    model_type: str
    bits: str
    num_layers: int
    num_experts: int
    top_k: int
    expert_bytes: int

    @property
    def num_keys(self) -> int:
        return self.num_layers * self.num_experts

    @classmethod
    def of(cls, endpoint: str, pid: int, manifest: Manifest) -> "Served":
        return cls(
            endpoint=endpoint,
            pid=pid,
            source=manifest.source,
            model_type=manifest.model_type,
            bits=manifest.layout.bits,
            num_layers=manifest.num_layers,
            num_experts=manifest.num_experts,
            top_k=manifest.top_k,
            expert_bytes=manifest.layout.stride,
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """One client. `reported_s` is None, and `counters` empty, when it has reported nothing.

    `in_slots`: the keys that it says are in its slots; without a report, those that it leases.
    """

    number: int
    pid: int
    quota: int
    about: str
    reported_s: float | None
    counters: Mapping[str, int]
    in_slots: frozenset[int]


@dataclass(frozen=True, slots=True)
class Sample:
    """One look, at `taken_s` (monotonic). `sealed` and `filling` are keys in frames; `stats` the loader's."""

    served: Served
    taken_s: float
    epoch: int
    stats: Mapping[str, int]
    sealed: frozenset[int]
    filling: frozenset[int]
    clients: tuple[Seen, ...]
