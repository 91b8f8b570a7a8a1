"""Generation while its loader is killed or stopped: the same tokens, every time."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from compute import offload
from compute.offloaded import Offloaded

GREEDY = {"do_sample": False, "repetition_penalty": 1.0}
PROMPT = "Once upon a time there was a king who"
SLOTS = 24
#: What a recovery may cost, a hung loader's detection included, on a quiet machine.
RECOVERY_S = 5.0
NUM_BUS_THREADS = 2


@pytest.fixture
def offloaded(store_4bit: Path) -> Iterator[Offloaded]:
    torch.set_num_threads(1)
    with offload(str(store_4bit), slots=SLOTS, threads=1) as offloaded:
        yield offloaded


class Clock(StoppingCriteria):  # type: ignore[misc]
    """Notes when each token came, and never stops anything."""

    def __init__(self) -> None:
        self.times = [time.monotonic()]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        self.times.append(time.monotonic())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def tokens(offloaded: Offloaded, length: int, clock: Clock | None = None) -> list[int]:
    assert offloaded.tokenizer is not None
    inputs = offloaded.tokenizer(PROMPT, return_tensors="pt")
    criteria = StoppingCriteriaList([clock] if clock else [])
    output = offloaded.model.generate(
        **inputs, max_new_tokens=length, min_new_tokens=length, stopping_criteria=criteria, **GREEDY
    )
    found: list[int] = output[0].tolist()
    return found


def serving_loader() -> psutil.Process | None:
    """The loader of this moment, if it has begun to read: its reader threads are there."""
    for child in psutil.Process().children():
        try:
            is_loader = "loader" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE
            if is_loader and child.num_threads() > NUM_BUS_THREADS + 1:
                return child
        except psutil.NoSuchProcess:
            continue
    return None


@contextmanager
def under_fire(number: int, pause_s: Callable[[], float], count: int) -> Iterator[dict[int, float]]:
    """Send a signal to the loader `count` times during the body. Yields the pids that got one, and when."""
    hit: dict[int, float] = {}
    is_over = threading.Event()

    def fire() -> None:
        while len(hit) < count and not is_over.wait(0.005):
            process = serving_loader()
            if process and process.pid not in hit and not is_over.wait(pause_s()):
                process.send_signal(number)
                hit[process.pid] = time.monotonic()

    thread = threading.Thread(target=fire)
    thread.start()
    try:
        yield hit
    finally:
        is_over.set()
        thread.join()


def generate_until(offloaded: Offloaded, hit: dict[int, float], count: int, calm: list[int]) -> float:
    """Generate until all signals were sent, and once more; the slowest recovery, in seconds.

    That is the time between two tokens, shared among the hits that fell into it.
    """
    gaps: list[tuple[float, float]] = []
    is_last = False
    while not is_last:
        is_last = len(hit) >= count
        clock = Clock()
        assert tokens(offloaded, len(calm) - num_prompt(offloaded), clock) == calm
        gaps += pairwise(clock.times)
    times = [*hit.values()]
    return max((end - start) / max(sum(start <= at < end for at in times), 1) for start, end in gaps)


def num_prompt(offloaded: Offloaded) -> int:
    assert offloaded.tokenizer is not None
    return len(offloaded.tokenizer(PROMPT)["input_ids"])


def num_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.timeout(120)
def test_a_loader_that_is_stopped_is_replaced_and_no_token_moves(offloaded: Offloaded) -> None:
    calm = tokens(offloaded, 24)
    with under_fire(signal.SIGSTOP, lambda: 0.02, 1) as hit:
        generate_until(offloaded, hit, 1, calm)
    assert not any(psutil.pid_exists(pid) for pid in hit)


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("number", "count"), [(signal.SIGKILL, 100), (signal.SIGSTOP, 20)])
def test_a_hundred_kills_and_twenty_stops_move_no_token(
    offloaded: Offloaded, number: signal.Signals, count: int
) -> None:
    rng = random.Random(number)
    calm = tokens(offloaded, 24)
    fds = num_fds()
    with under_fire(number, lambda: rng.uniform(0.0, 0.6), count) as hit:
        slowest_s = generate_until(offloaded, hit, count, calm)
    print(f"{count} times {number.name}: the slowest recovery took {slowest_s:.2f} s")
    assert len(hit) == count
    assert not any(psutil.pid_exists(pid) for pid in hit)
    assert num_fds() <= fds
    assert slowest_s < RECOVERY_S
