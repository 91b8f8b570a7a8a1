"""Ctrl-C waits for the end of undivided work, and for nothing else."""

import signal
import threading
from collections.abc import Iterator

import pytest

from compute.undivided import Undivided


@pytest.fixture(autouse=True)
def python_default() -> Iterator[None]:
    """SIGINT is a KeyboardInterrupt, as in an interpreter or a notebook's cell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_within_comes_at_the_end() -> None:
    undivided, done = Undivided(), []
    with pytest.raises(KeyboardInterrupt), undivided.guarded():
        with undivided:
            _press()
            done.append("the work")
        done.append("what follows")
    assert done == ["the work"]


def test_an_interrupt_between_comes_at_once() -> None:
    undivided, done = Undivided(), []
    with pytest.raises(KeyboardInterrupt), undivided.guarded():
        with undivided:
            done.append("the work")
        _press()
        done.append("what follows")
    assert done == ["the work"]


def test_a_second_interrupt_waits_for_nothing() -> None:
    undivided, done = Undivided(), []
    with pytest.raises(KeyboardInterrupt), undivided.guarded(), undivided:
        _press()
        done.append("after one")
        _press()
        done.append("after two")
    assert done == ["after one"]


def test_the_handler_from_before_is_the_one_that_hears_and_comes_back() -> None:
    undivided = Undivided()
    heard: list[int] = []

    def note(number: int, frame: object) -> None:
        heard.append(number)

    signal.signal(signal.SIGINT, note)
    with undivided.guarded():
        with undivided:
            _press()
            assert heard == []
        assert heard == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is note


def test_after_an_interrupt_the_handler_from_before_is_back_and_nothing_is_owed() -> None:
    undivided = Undivided()
    with pytest.raises(KeyboardInterrupt), undivided.guarded(), undivided:
        _press()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with undivided.guarded(), undivided:
        pass


def test_a_handler_that_the_work_installs_stays() -> None:
    undivided = Undivided()

    def own(number: int, frame: object) -> None:
        return

    with undivided.guarded():
        signal.signal(signal.SIGINT, own)
    assert signal.getsignal(signal.SIGINT) is own


def test_where_interrupts_are_ignored_they_stay_so() -> None:
    undivided = Undivided()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with undivided.guarded(), undivided:
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        _press()


def test_other_threads_than_the_main_one_change_no_handler() -> None:
    undivided = Undivided()
    seen: list[object] = []

    def work() -> None:
        with undivided.guarded(), undivided:
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=10)
    assert seen == [signal.default_int_handler]
