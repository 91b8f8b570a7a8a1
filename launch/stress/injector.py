"""The injector: breaks one thing after the other, at random times, and mends what does not mend itself.

Every kind that is enabled comes in turn, in a random order. What a kind does is one method; what
has to be undone is noted with its time. Knows the scene, nothing of how it recovers.
"""

import contextlib
import logging
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass

from launch.stress.config import FaultKind
from launch.stress.garbage import talk_nonsense
from launch.stress.scene import Scene
from launch.stress.synthetic_store import corrupt_blob, place_of
from loader.faults import Word
from protocol.errors import SidestageError

#: Between two faults, in seconds.
MIN_PAUSE_S = 0.4
MAX_PAUSE_S = 1.6
#: How long a disk is slow, or a store is damaged.
LASTING_S = 0.8
_READ_DELAY_US = 60_000
_NUM_CORRUPT = 24
#: Blows to the loader wait for its recovery: one that is hit again and again before it has brought
#: an expert is given up, as it should be.
_BLOWS = frozenset({FaultKind.KILL_LOADER, FaultKind.STOP_LOADER, FaultKind.FULL_MEMORY})
#: A store is damaged in one way at a time: each is undone by what it was like before.
_DAMAGES = frozenset({FaultKind.CORRUPT_BLOB, FaultKind.TRUNCATED_STORE})

_log = logging.getLogger("sidestage.stress")


@dataclass(slots=True)
class _Repair:
    at: float
    mend: Callable[[], None]


class Injector:
    """Call `act` every now and then, and `mend_all` at the end."""

    def __init__(self, scene: Scene, kinds: tuple[FaultKind, ...], rng: random.Random, now: float) -> None:
        self.num_injected: dict[FaultKind, int] = dict.fromkeys(kinds, 0)
        self._scene = scene
        self._rng = rng
        self._turn: list[FaultKind] = []
        self._repairs: dict[FaultKind, _Repair] = {}
        self._next_at = now + self._pause()
        self._deeds: dict[FaultKind, Callable[[], Callable[[], None] | None]] = {
            FaultKind.KILL_LOADER: self._kill_loader,
            FaultKind.STOP_LOADER: self._stop_loader,
            FaultKind.KILL_CLIENT: self._kill_client,
            FaultKind.SLOW_DISK: self._slow_disk,
            FaultKind.CORRUPT_BLOB: self._corrupt_blobs,
            FaultKind.TRUNCATED_STORE: self._truncate_store,
            FaultKind.FULL_MEMORY: self._fill_memory,
            FaultKind.DROP_MESSAGE: self._drop_message,
            FaultKind.GARBAGE_MESSAGE: self._talk_nonsense,
        }

    def act(self, now: float) -> None:
        """Mend what is due; break something if it is time and everybody is there to see it."""
        for kind, repair in list(self._repairs.items()):
            if now >= repair.at:
                repair.mend()
                del self._repairs[kind]
        if self.num_injected and now >= self._next_at and self._scene.is_lively:
            self._next_at = now + self._pause()
            kind = self._next_kind()
            if kind in _BLOWS and self._scene.recovery.is_under_way:
                self._turn.insert(0, kind)
            else:
                self.inject(kind, now)

    def inject(self, kind: FaultKind, now: float) -> None:
        """Do it now; what still lasts of its kind is mended first."""
        for lasting in [k for k in self._repairs if k == kind or {k, kind} <= _DAMAGES]:
            self._repairs.pop(lasting).mend()
        _log.info("fault: %s", kind)
        mend = self._deeds[kind]()
        self.num_injected[kind] = self.num_injected.get(kind, 0) + 1
        if mend:
            self._repairs[kind] = _Repair(now + LASTING_S, mend)

    def mend_all(self) -> None:
        """Nothing stays broken."""
        while self._repairs:
            self._repairs.popitem()[1].mend()

    def _pause(self) -> float:
        return self._rng.uniform(MIN_PAUSE_S, MAX_PAUSE_S)

    def _next_kind(self) -> FaultKind:
        if not self._turn:
            self._turn = list(self.num_injected)
            self._rng.shuffle(self._turn)
        return self._turn.pop()

    # --- what each kind does; returns how to undo it ------------------------------------------

    def _kill_loader(self) -> None:
        self._scene.signal_loader(signal.SIGKILL)

    def _stop_loader(self) -> None:
        self._scene.signal_loader(signal.SIGSTOP)

    def _kill_client(self) -> None:
        self._rng.choice(self._scene.seats).kill()

    def _slow_disk(self) -> Callable[[], None]:
        self._scene.board[Word.READ_DELAY_US] = _READ_DELAY_US

        def mend() -> None:
            self._scene.board[Word.READ_DELAY_US] = 0

        return mend

    def _corrupt_blobs(self) -> Callable[[], None]:
        scene = self._scene
        keys = self._rng.sample(range(scene.manifest.num_keys), min(_NUM_CORRUPT, scene.manifest.num_keys))

        def flip() -> None:
            for key in keys:
                corrupt_blob(scene.store, scene.manifest, key)

        flip()
        return flip

    def _truncate_store(self) -> Callable[[], None]:
        """The second half of one shard goes."""
        shard = self._rng.choice(self._scene.manifest.shards)
        path, start = place_of(
            self._scene.store, self._scene.manifest, shard.first_key + shard.num_experts // 2
        )
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        rest = os.pread(fd, os.fstat(fd).st_size - start, start)
        os.ftruncate(fd, start)

        def mend() -> None:
            os.pwrite(fd, rest, start)
            os.close(fd)

        return mend

    def _fill_memory(self) -> None:
        self._scene.board[Word.FULL_STARTS] = 1
        self._scene.signal_loader(signal.SIGKILL)

    def _drop_message(self) -> None:
        self._scene.board[Word.LOST_COMMANDS] = 1

    def _talk_nonsense(self) -> None:
        with contextlib.suppress(SidestageError, OSError):  # the loader may be away just now
            talk_nonsense(self._scene.loader.endpoint, self._rng)
