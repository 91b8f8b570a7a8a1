"""When a loader is replaced, and when that is given up."""

from dataclasses import dataclass
from typing import cast

import pytest

from compute.loader_process import OwnedLoader
from launch.keeper import LONG_LIFE_S, Keeper
from protocol.errors import LoaderLostError, MemoryBudgetError

TIMEOUT_S = 4.0


@dataclass
class FakeLoader:
    """A loader's outside: alive or not, turning or not."""

    pid: int = 1
    turns: int = 0
    is_alive: bool = True
    num_restarts: int = 0
    stays_dead: bool = False
    progress: int = 0
    sentence: str = ""

    def restart(self) -> None:
        self.num_restarts += 1
        if self.sentence:
            raise MemoryBudgetError(self.sentence)
        self.is_alive = not self.stays_dead


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.keeper.time.sleep", lambda seconds: None)
    monkeypatch.setattr("launch.keeper.time.monotonic", lambda: 0.0)


def _keeper(loader: FakeLoader) -> Keeper:
    return Keeper(cast(OwnedLoader, loader), TIMEOUT_S)


def test_a_loader_that_turns_is_left_alone() -> None:
    loader = FakeLoader()
    keeper = _keeper(loader)
    for second in range(100):
        loader.turns += 1
        keeper.look(float(second))
    assert loader.num_restarts == 0


def test_a_dead_loader_is_replaced_at_once() -> None:
    loader = FakeLoader(is_alive=False)
    _keeper(loader).look(0.1)
    assert loader.num_restarts == 1


def test_a_loader_that_stands_still_is_replaced_after_half_the_timeout() -> None:
    loader = FakeLoader()
    keeper = _keeper(loader)
    keeper.look(TIMEOUT_S / 2)
    assert loader.num_restarts == 0
    keeper.look(TIMEOUT_S / 2 + 0.1)
    assert loader.num_restarts == 1


def test_restarting_in_vain_is_given_up_with_a_sentence() -> None:
    loader = FakeLoader(is_alive=False, stays_dead=True)
    keeper = _keeper(loader)
    with pytest.raises(LoaderLostError, match="times in a row"):
        for _ in range(100):
            keeper.look(0.1)
    assert 1 < loader.num_restarts < 10


def test_a_ticket_that_ended_makes_up_for_former_deaths() -> None:
    loader = FakeLoader(is_alive=False, stays_dead=True)
    keeper = _keeper(loader)
    for _ in range(50):
        loader.progress += 1
        keeper.look(0.1)
    assert loader.num_restarts == 50


def test_a_loader_that_does_not_come_up_is_tried_again() -> None:
    loader = FakeLoader(is_alive=False, sentence="the machine is full")
    keeper = _keeper(loader)
    keeper.look(0.1)
    loader.sentence = ""
    keeper.look(0.2)
    assert loader.is_alive and loader.num_restarts == 2


def test_a_loader_that_never_comes_up_is_given_up_with_its_own_sentence() -> None:
    keeper = _keeper(FakeLoader(is_alive=False, sentence="the machine is full"))
    with pytest.raises(LoaderLostError, match="the machine is full"):
        for _ in range(100):
            keeper.look(0.1)


def test_a_long_life_makes_up_for_former_deaths() -> None:
    loader = FakeLoader(is_alive=False, stays_dead=True)
    keeper = _keeper(loader)
    for _ in range(50):
        keeper.look(LONG_LIFE_S + 1)
    assert loader.num_restarts == 50
