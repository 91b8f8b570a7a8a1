"""What the supervisor of a server does about Ctrl-C: once it drains, twice it ends."""

import os
from typing import cast

import pytest

from launch.compute_process import ComputeProcess
from launch.interrupts import Interrupts
from launch.server.front import Front
from launch.server.line import Line
from launch.server.messages import Loaded
from launch.server.metrics import Metrics
from launch.server.serve import Watched
from launch.server.state import ServerState
from protocol.errors import SidestageError


class Fakes:
    """A front, a compute process that never answers, and `num` interrupts that have come."""

    def __init__(self, num: int, is_alive: bool = True) -> None:
        self.is_alive = is_alive
        self.has_ended = False
        self.num_drained = 0
        self._num = num
        self._fd = os.eventfd(num)

    def fileno(self) -> int:
        return self._fd

    def read(self) -> None:
        """Nothing is said."""

    def taken(self) -> int:
        num, self._num = self._num, 0
        return num

    def drain(self) -> None:
        self.num_drained += 1
        self.has_ended = True

    def close(self) -> None:
        os.close(self._fd)


def watch(fakes: Fakes, is_loaded: bool = True) -> None:
    line = Line(1, 1, lambda flow: None)
    line.loaded = Loaded("store", "fingerprint", 512) if is_loaded else None
    watched = Watched(cast(Front, fakes), ServerState("model", line, Metrics()), "http://here")
    try:
        watched.watch(cast(ComputeProcess, fakes), cast(Interrupts, fakes), None)
    finally:
        fakes.close()


def test_one_interrupt_drains() -> None:
    fakes = Fakes(1)
    watch(fakes)
    assert fakes.num_drained == 1


def test_two_interrupts_end_it_at_once() -> None:
    fakes = Fakes(2)
    with pytest.raises(KeyboardInterrupt):
        watch(fakes)
    assert fakes.num_drained == 1


def test_one_interrupt_ends_a_server_that_has_nothing_to_finish_because_it_loads() -> None:
    with pytest.raises(KeyboardInterrupt):
        watch(Fakes(1), is_loaded=False)


def test_a_dead_http_side_ends_the_server_with_a_sentence() -> None:
    with pytest.raises(SidestageError, match="HTTP side"):
        watch(Fakes(0, is_alive=False))
