"""Ctrl-C as something a poll loop sees, or as an exception out of a wait that no poll loop can watch."""

import os
import select
import signal
import threading

import pytest

from launch.interrupts import Interrupts, Terminated


def _is_readable(interrupts: Interrupts) -> bool:
    return bool(select.select([interrupts.fileno()], [], [], 1.0)[0])


def test_an_interrupt_is_readable_and_raises_nothing() -> None:
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        assert _is_readable(interrupts)
        assert interrupts.taken() == 1
        assert interrupts.taken() == 0


def test_several_are_counted() -> None:
    with Interrupts() as interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
            assert _is_readable(interrupts)
        assert interrupts.taken() == 2


def test_afterwards_signals_mean_what_they_meant() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def _raised_by_a_signal_that_interrupts_nothing(interrupts: Interrupts, number: int) -> type[BaseException]:
    """As one that comes just before the system call: it is pending, and the call goes on.

    Here the kernel restarts the call after it; its end comes at last, so that the test can fail.
    """
    signal.siginterrupt(number, False)
    read_fd, write_fd = os.pipe()
    signal_it = threading.Timer(0.05, os.kill, (os.getpid(), number))
    end_it = threading.Timer(10.0, os.close, (write_fd,))
    with open(read_fd) as awaited:
        signal_it.start()
        end_it.start()
        with pytest.raises(KeyboardInterrupt) as told:
            interrupts.during(awaited.readline)
        assert not end_it.finished.is_set(), "it was raised only when the call had ended by itself"
        end_it.cancel()
    os.close(write_fd)
    return told.type


def test_ctrl_c_that_comes_just_before_a_wait_ends_it() -> None:
    with Interrupts() as interrupts:
        told = _raised_by_a_signal_that_interrupts_nothing(interrupts, signal.SIGINT)
    assert told is KeyboardInterrupt


def test_sigterm_that_comes_just_before_a_wait_ends_it_and_is_told_apart() -> None:
    with Interrupts() as interrupts:
        told = _raised_by_a_signal_that_interrupts_nothing(interrupts, signal.SIGTERM)
    assert told is Terminated


def test_sigterm_that_nobody_has_taken_ends_the_next_wait_before_it_begins() -> None:
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Terminated):
            interrupts.during(lambda: pytest.fail("it waits"))


def test_ctrl_c_from_before_a_wait_does_not_end_it() -> None:
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.during(lambda: "a line") == "a line"


def test_a_second_signal_does_not_disturb_the_clean_up_after_the_first() -> None:
    def wait() -> str:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
        return ""

    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt) as told:
            interrupts.during(wait)
        assert told.type is KeyboardInterrupt
        assert signal.SIGTERM in interrupts.taken_signals()


def test_after_a_wait_the_clock_and_its_signal_are_as_they_were() -> None:
    def was() -> tuple[object, float]:
        return signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)[1]

    before = was()
    with Interrupts() as interrupts:
        assert interrupts.during(lambda: str(was())) != str(before)
        assert was() == before
