"""Generation while its loader is killed or stopped: the same tokens, every time."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from compute import offload
from compute.offloaded import Offloaded

GREEDY = {"do_sample": False, "repetition_penalty": 1.0}
PROMPT = "Once upon a time there was a king who"
SLOTS = 24
#: A loader that stands still for half of it is replaced.
TIMEOUT_S = 4.0
#: What a recovery may cost, beyond a hung loader's half timeout, on a quiet machine.
RECOVERY_S = 5.0
NUM_BUS_THREADS = 2


@pytest.fixture
def offloaded(store_4bit: Path) -> Iterator[Offloaded]:
    torch.set_num_threads(1)
    with offload(str(store_4bit), slots=SLOTS, threads=1, timeout=TIMEOUT_S) as offloaded:
        yield offloaded


def tokens(offloaded: Offloaded, length: int) -> list[int]:
    assert offloaded.tokenizer is not None
    inputs = offloaded.tokenizer(PROMPT, return_tensors="pt")
    output = offloaded.model.generate(**inputs, max_new_tokens=length, min_new_tokens=length, **GREEDY)
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
def under_fire(number: int, pause_s: Callable[[], float], count: int) -> Iterator[list[int]]:
    """Send a signal to the loader `count` times during the body. Yields the pids that got one."""
    hit: list[int] = []
    is_over = threading.Event()

    def fire() -> None:
        while len(hit) < count and not is_over.wait(0.005):
            process = serving_loader()
            if process and process.pid not in hit and not is_over.wait(pause_s()):
                process.send_signal(number)
                hit.append(process.pid)

    thread = threading.Thread(target=fire)
    thread.start()
    try:
        yield hit
    finally:
        is_over.set()
        thread.join()


def generate_until(offloaded: Offloaded, hit: list[int], count: int, calm: list[int]) -> float:
    """Generate until all signals were sent, and once more; the longest generation, in seconds."""
    longest = 0.0
    while True:
        is_last = len(hit) >= count
        started = time.monotonic()
        assert tokens(offloaded, len(calm) - num_prompt(offloaded)) == calm
        longest = max(longest, time.monotonic() - started)
        if is_last:
            return longest


def num_prompt(offloaded: Offloaded) -> int:
    assert offloaded.tokenizer is not None
    return len(offloaded.tokenizer(PROMPT)["input_ids"])


def num_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.timeout(120)
def test_a_loader_that_is_stopped_is_replaced_and_no_token_moves(offloaded: Offloaded) -> None:
    calm = tokens(offloaded, 24)
    with under_fire(signal.SIGSTOP, lambda: 0.02, 1) as hit:
        longest = generate_until(offloaded, hit, 1, calm)
    assert not psutil.pid_exists(hit[0])
    assert longest < 10 * RECOVERY_S


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("number", "count"), [(signal.SIGKILL, 100), (signal.SIGSTOP, 20)])
def test_a_hundred_kills_and_twenty_stops_move_no_token(
    offloaded: Offloaded, number: signal.Signals, count: int
) -> None:
    rng = random.Random(number)
    started = time.monotonic()
    calm = tokens(offloaded, 24)
    calm_s = time.monotonic() - started
    fds = num_fds()
    with under_fire(number, lambda: rng.uniform(0.0, 0.6), count) as hit:
        longest = generate_until(offloaded, hit, count, calm)
    assert len(set(hit)) == count
    assert not any(psutil.pid_exists(pid) for pid in hit)
    assert num_fds() <= fds
    num_hits_in_one = 1 + int(longest / 0.3)
    assert longest < calm_s + RECOVERY_S * num_hits_in_one
