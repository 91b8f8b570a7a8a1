"""Every kind of fault once, in real processes: each is recovered from, and no byte is ever wrong.

One test, so that the processes are started once; what a kind must lead to is one function each.
"""

import random
import time
from collections.abc import Callable

import pytest

from launch.stress.config import FaultKind, StressConfig
from launch.stress.injector import Injector
from launch.stress.report import Counted, total
from launch.stress.scene import Scene
from launch.stress.tally import Count
from loader.faults import Word

#: Of one recovery, on a busy machine.
TIMEOUT_S = 40.0


class Watch:
    """Keeps a scene going until something has happened."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.injector = Injector(scene, (), random.Random(0), time.monotonic())

    def until(self, has_happened: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + TIMEOUT_S
        while not has_happened():
            assert time.monotonic() < until, f"{what} has not happened within {TIMEOUT_S:g} s"
            self.scene.look()
            self.scene.look_after_clients()
            self.injector.act(time.monotonic())
            time.sleep(0.01)

    def until_everybody_gets_experts(self, what: str) -> None:
        self.until(lambda: self.scene.is_lively, f"{what}: that everybody is back")
        before = [seat.tally[Count.TRANSFERS] for seat in self.scene.seats]
        self.until(
            lambda: all(
                seat.tally[Count.TRANSFERS] > number + 20
                for seat, number in zip(self.scene.seats, before, strict=True)
            ),
            f"{what}: that every client gets experts again",
        )


def expectation(scene: Scene, kind: FaultKind) -> Callable[[], bool]:
    """What must be true once a fault of this kind, injected next, has had its effect."""
    restarts, epoch_pid = scene.loader.num_restarts, scene.loader.pid
    respawns = sum(seat.num_respawns for seat in scene.seats)
    refused, renewals = total(scene, Count.REFUSED), total(scene, Count.RENEWALS)
    match kind:
        case FaultKind.KILL_LOADER | FaultKind.STOP_LOADER:
            return lambda: scene.loader.num_restarts > restarts
        case FaultKind.FULL_MEMORY:
            return lambda: scene.loader.num_restarts > restarts and scene.board[Word.FULL_STARTS] == 0
        case FaultKind.KILL_CLIENT:
            return lambda: sum(seat.num_respawns for seat in scene.seats) > respawns
        case FaultKind.CORRUPT_BLOB | FaultKind.TRUNCATED_STORE:
            return lambda: total(scene, Count.REFUSED) > refused
        case FaultKind.DROP_MESSAGE:
            return lambda: total(scene, Count.RENEWALS) > renewals
        case FaultKind.SLOW_DISK:
            return lambda: scene.board[Word.READ_DELAY_US] == 0
        case FaultKind.GARBAGE_MESSAGE:
            return lambda: scene.loader.pid == epoch_pid and scene.loader.is_alive


@pytest.mark.parametrize("arrangement", ["emulated", "direct"])
@pytest.mark.timeout(300)
def test_every_fault_is_recovered_from_and_nothing_is_corrupt_lost_or_left(arrangement: str) -> None:
    kinds = FaultKind if arrangement == "emulated" else (FaultKind.KILL_LOADER, FaultKind.DROP_MESSAGE)
    scene = Scene(StressConfig(clients=2, arrangement=arrangement, seed=7))
    try:
        watch = Watch(scene)
        watch.until_everybody_gets_experts("the start")
        for kind in kinds:
            is_met = expectation(scene, kind)
            watch.injector.inject(kind, time.monotonic())
            watch.until(is_met, f"what {kind} leads to")
            watch.until_everybody_gets_experts(kind)
        watch.injector.mend_all()
        scene.dismiss(TIMEOUT_S)
        counted = Counted.of(scene)
        assert (counted.corrupt, counted.lost) == (0, 0)
        assert scene.leaked_loader_fds() + total(scene, Count.LEAKED_FDS) == 0
    finally:
        scene.close()
    assert not any(process.is_running() for process in scene.processes())
    assert not scene.folder.exists() and not scene.loader.folder.exists()
