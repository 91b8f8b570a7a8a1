"""Ctrl-C as something a poll loop sees."""

import os
import select
import signal

from launch.interrupts import Interrupts


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
