"""The supervisor: starts loader and compute, watches both, and leaves nothing behind.

Holds the arena and the loader's folder (through OwnedLoader), so that a loader that dies loses no
frame. Knows nothing of models or tokens, and imports no torch.
"""

import os
import select
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass

from launch.compute_process import ComputeProcess
from launch.interrupts import Interrupts
from launch.job import Job
from launch.keeper import Keeper
from launch.own_loader import LoaderPlan, own_loader

#: How often the loader is looked at.
_LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class Outcome:
    """What compute answered, and whether Ctrl-C or SIGTERM cut it short."""

    result: dict[str, object]
    was_interrupted: bool


def supervise(job: Job, own: LoaderPlan | None, timeout_s: float | None) -> Outcome:
    """Run `job` against a loader of our own, or against the one at `job.endpoint`.

    Raises SidestageError with a sentence; KeyboardInterrupt when told twice to stop, or before
    the first token. Whatever happens, both children are gone afterwards.
    """
    with ExitStack() as opened:
        text_fd = _text_fd(job.streams)
        opened.callback(os.close, text_fd)
        compute = opened.enter_context(ComputeProcess(text_fd))
        job, keeper = opened.enter_context(own_loader(own, job, timeout_s))
        compute.send(job)
        with Interrupts() as interrupts:
            was_interrupted = _watch(compute, interrupts, keeper)
        result = compute.result()
        if keeper:
            result["loader_restarts"] = keeper.loader.num_restarts
        return Outcome(result, was_interrupted)


def _text_fd(streams: bool) -> int:
    """Where compute writes the text: our stdout, or nowhere."""
    return os.dup(sys.stdout.fileno()) if streams else os.open(os.devnull, os.O_WRONLY)


def _watch(compute: ComputeProcess, interrupts: Interrupts, keeper: Keeper | None) -> bool:
    """Until compute has answered. The first interrupt drains, the second raises KeyboardInterrupt."""
    num_interrupts = 0
    while not compute.has_ended:
        ready, _, _ = select.select([compute.fileno(), interrupts.fileno()], [], [], _LOOK_S)
        if compute.fileno() in ready:
            compute.read()
        if interrupts.fileno() in ready:
            num_interrupts += interrupts.taken()
            if num_interrupts > 1:
                raise KeyboardInterrupt
            compute.drain()
        if keeper:
            keeper.look(time.monotonic())
    return num_interrupts > 0
