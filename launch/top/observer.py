"""Observer: comes in at a loader's door without a claim to any frame, and looks.

Owns the bus and a read-only mapping of the arena, for one loader's life. The frame table and the
leases are read as they lie; they may be torn for an instant, which only a picture of them is.
"""

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np

from launch.top.sample import Sample, Seen, Served
from protocol.arena import F_GENERATION, F_OCCUPANT, FRAME_MASK, Arena
from protocol.channel import BusClient
from protocol.door import enter
from protocol.errors import LoaderLostError
from protocol.manifest import Manifest
from protocol.messages import (
    PROTOCOL_VERSION,
    Event,
    Fault,
    Goodbye,
    Hello,
    Knock,
    Ready,
    Reported,
    Snapshot,
    Stats,
    Stopped,
)
from protocol.pidfd import is_dead

_WAIT_S = 0.1
_LINGER_S = 0.2


class Observer:
    """One observer of the loader whose door is at `endpoint`. Used from one thread at a time."""

    def __init__(self, endpoint: str, timeout_s: float) -> None:
        """Come in. Raises LoaderLostError, RefusedError, StoreError or ProtocolError with a sentence."""
        self._timeout_s = timeout_s
        self._question = 0
        admission = enter(endpoint, Knock(PROTOCOL_VERSION, 0, "", "message", -1), timeout_s)
        with ExitStack() as opened:
            opened.callback(os.close, admission.eventfd)
            self._pidfd = admission.open_pidfd()
            opened.callback(os.close, self._pidfd)
            try:
                self._arena = opened.enter_context(Arena(admission.arena_fd, writable=False))
            finally:
                os.close(admission.arena_fd)
            welcome = admission.welcome
            self._epoch = welcome.epoch
            manifest = Manifest.read(Path(welcome.store_path))
            self.served = Served.of(endpoint, admission.loader_pid, manifest)
            self._bus = BusClient(welcome.endpoint, welcome.identity, timeout_s)
            opened.callback(self._bus.close, _LINGER_S)
            self._bus.send(Hello(welcome.client, ()))
            self._await(Ready)
            self._opened = opened.pop_all()
        self._is_open = True

    def look(self) -> Sample:
        """What there is to see now. Raises LoaderLostError when the loader does not answer in time."""
        self._question += 1
        self._bus.send(Snapshot(self._question))
        reports, stats = self._answer()
        now_s = time.monotonic()
        sealed, filling = self._frames()
        return Sample(
            served=self.served,
            taken_s=now_s,
            epoch=self._epoch,
            stats=dict(zip(stats.names, stats.values)),
            sealed=sealed,
            filling=filling,
            clients=tuple(self._seen(told, now_s) for told in reports),
        )

    def close(self) -> None:
        """Leave. Idempotent."""
        if self._is_open and not is_dead(self._pidfd):
            self._bus.send(Goodbye())
        self._is_open = False
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _answer(self) -> tuple[list[Reported], Stats]:
        reports: list[Reported] = []
        while True:
            match self._await(Reported, Stats):
                case Reported() as told:
                    reports.append(told)
                case Stats(question=question) as stats if question == self._question:
                    return reports, stats
                case _:
                    reports.clear()  # the late answer to an earlier question

    def _await(self, *kinds: type[Event]) -> Event:
        until = time.monotonic() + self._timeout_s
        while time.monotonic() < until:
            event = self._bus.receive(_WAIT_S)
            if isinstance(event, kinds):
                return event
            match event:
                case Stopped(reason=reason):
                    raise LoaderLostError(f"the loader stopped: {reason}")
                case Fault(text=text):
                    raise LoaderLostError(f"the loader would not tell: {text}")
                case None if is_dead(self._pidfd):
                    raise LoaderLostError(f"the loader (process {self.served.pid}) has died")
        raise LoaderLostError(
            f"the loader (process {self.served.pid}) has not answered for {self._timeout_s:g} s: is it hung? "
            f"(raise --timeout or SIDESTAGE_TIMEOUT)"
        )

    def _frames(self) -> tuple[frozenset[int], frozenset[int]]:
        """Keys in frames: sealed ones, and those being filled."""
        table = self._arena.frame_table.copy()
        table = table[table[:, F_OCCUPANT] > 0]
        is_filling = table[:, F_GENERATION] % 2 == 1
        keys = table[:, F_OCCUPANT].astype(np.int64) - 1
        return frozenset(keys[~is_filling].tolist()), frozenset(keys[is_filling].tolist())

    def _seen(self, told: Reported, now_s: float) -> Seen:
        has_reported = told.age_us >= 0
        return Seen(
            number=told.client,
            pid=told.pid,
            quota=told.quota,
            about=told.about,
            reported_s=now_s - told.age_us / 1e6 if has_reported else None,
            counters=dict(zip(told.names, told.values)),
            in_slots=self._keys_of(told.resident) if has_reported else self._leased(told.client),
        )

    def _keys_of(self, resident: bytes) -> frozenset[int]:
        bits = np.unpackbits(np.frombuffer(resident, np.uint8))[: self.served.num_keys]
        return frozenset(np.flatnonzero(bits).tolist())

    def _leased(self, client: int) -> frozenset[int]:
        words = self._arena.leases[client].copy()
        frames = (words[words != 0] & np.uint64(FRAME_MASK)).astype(np.int64)
        occupants = self._arena.frame_table[frames, F_OCCUPANT].astype(np.int64)
        return frozenset((occupants[occupants > 0] - 1).tolist())
