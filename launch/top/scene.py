"""The scene: from the samples of the last seconds to what is shown of them. Pure.

Rates are differences between the first and the last sample of the window, a client's between its
own reports. What cannot be told yet is None.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from launch.top.sample import Sample, Seen, Served

#: Samples older than this are forgotten.
WINDOW_S = 6.0
#: A client that has not reported for so long runs no layers now.
IDLE_S = 3.0

#: Reports nearer to each other than this are the same one.
_SAME_S = 0.3

#: The characters of the grid: on disk, in a frame, on its way, and in a slot for a quarter of the
#: window's looks, half, three quarters, or all of them.
DISK, FRAME, COMING = " ", ".", "+"
HEAT = "1234"


@dataclass(frozen=True, slots=True)
class LoaderRow:
    """`fetch_ms`: what a fetch waited for its bytes, on average; frames by what they hold."""

    frames: int
    leased: int
    cached: int
    filling: int
    free: int
    queue: int
    bytes_per_s: float | None
    fetches_per_s: float | None
    fetch_ms: float | None
    host_hit_rate: float | None


@dataclass(frozen=True, slots=True)
class ClientRow:
    """Shares of the lookups of the last seconds; `stalled` is a share of time; None: it ran no layers."""

    number: int
    pid: int
    about: str
    slots: int
    in_slots: int
    is_idle: bool
    tokens_per_s: float | None
    hit: float | None
    late: float | None
    miss: float | None
    stalled: float | None
    link_bytes_per_s: float | None


@dataclass(frozen=True, slots=True)
class Scene:
    """`grid`: a string for each MoE layer with a character for each expert."""

    served: Served
    epoch: int
    window_s: float
    loader: LoaderRow
    clients: tuple[ClientRow, ...]
    grid: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def scene_of(samples: Sequence[Sample]) -> Scene:
    """Of at least one sample, in the order of time, all of the same loader."""
    first, last = samples[0], samples[-1]
    return Scene(
        served=last.served,
        epoch=last.epoch,
        window_s=last.taken_s - first.taken_s,
        loader=_loader_row(first, last),
        clients=tuple(_client_row(seen, samples) for seen in last.clients),
        grid=_grid(samples),
    )


def recent(samples: Sequence[Sample]) -> list[Sample]:
    """Those of the window, without any of a former loader."""
    last = samples[-1]
    return [
        sample
        for sample in samples
        if sample.taken_s >= last.taken_s - WINDOW_S
        and (sample.epoch, sample.served.pid) == (last.epoch, last.served.pid)
    ]


def _loader_row(first: Sample, last: Sample) -> LoaderRow:
    stats, seconds = last.stats, last.taken_s - first.taken_s
    grown = {name: value - first.stats.get(name, 0) for name, value in stats.items()}
    sealed, leased = stats["frames_sealed"], stats["frames_leased"]
    filling = len(last.filling)
    return LoaderRow(
        frames=stats["frames"],
        leased=leased,
        cached=max(sealed + filling - leased, 0),
        filling=filling,
        free=max(stats["frames"] - sealed - filling, 0),
        queue=stats["queue_depth"],
        bytes_per_s=_ratio(grown["bytes_read"], seconds),
        fetches_per_s=_ratio(grown["fetched"], seconds),
        fetch_ms=_ratio(grown["wait_us"] / 1000, grown["waits"]),
        host_hit_rate=_ratio(grown["host_hits"], grown["fetched"]),
    )


def _client_row(seen: Seen, samples: Sequence[Sample]) -> ClientRow:
    earlier = _earliest_report(seen, samples)
    grown = {name: value - earlier.counters.get(name, 0) for name, value in seen.counters.items()}
    seconds = (seen.reported_s or 0.0) - (earlier.reported_s or 0.0)
    seconds = seconds if seconds >= _SAME_S else 0.0
    lookups = sum(grown.get(name, 0) for name in ("hits", "late", "misses"))
    is_idle = seen.reported_s is None or samples[-1].taken_s - seen.reported_s > IDLE_S

    def rate(name: str, per: float) -> float | None:
        return None if is_idle else _ratio(grown.get(name, 0), per)

    stalled = rate("stall_us", seconds * 1e6)
    return ClientRow(
        number=seen.number,
        pid=seen.pid,
        about=seen.about,
        slots=seen.counters.get("slots", seen.quota),
        in_slots=len(seen.in_slots),
        is_idle=is_idle,
        tokens_per_s=rate("tokens", seconds),
        hit=rate("hits", lookups),
        late=rate("late", lookups),
        miss=rate("misses", lookups),
        stalled=None if stalled is None else min(stalled, 1.0),
        link_bytes_per_s=rate("bytes_transferred", seconds),
    )


def _earliest_report(seen: Seen, samples: Sequence[Sample]) -> Seen:
    """The same client's, the first in the window."""
    for sample in samples:
        for other in sample.clients:
            if (other.number, other.pid) == (seen.number, seen.pid) and other.reported_s is not None:
                return other
    return seen


def _grid(samples: Sequence[Sample]) -> tuple[str, ...]:
    last = samples[-1]
    served = last.served
    heat = np.zeros(served.num_keys, np.float64)
    for sample in samples:
        heat[_keys(frozenset[int]().union(*(seen.in_slots for seen in sample.clients)))] += 1 / len(samples)
    cells = np.full(served.num_keys, DISK)
    cells[_keys(last.sealed)] = FRAME
    cells[_keys(last.filling)] = COMING
    there = _keys(frozenset[int]().union(*(seen.in_slots for seen in last.clients)))
    levels = np.clip(np.ceil(heat[there] * len(HEAT)).astype(int), 1, len(HEAT)) - 1
    cells[there] = np.array(list(HEAT))[levels]
    rows = cells.reshape(served.num_layers, served.num_experts)
    return tuple("".join(row) for row in rows.tolist())


def _keys(keys: frozenset[int]) -> npt.NDArray[np.int64]:
    return np.fromiter(keys, np.int64, len(keys))


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
