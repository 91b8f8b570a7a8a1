"""Four client processes on one arena: fair, each with its own leases, memory held once."""

import os
import random
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.eater import eaten, start_eater
from support.loader_process import LoaderProcess
from support.synthetic_store import make_store

from protocol.child import Child

NUM_CLIENTS = 4
QUOTA = 4


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared") / "store"
    make_store(folder, 4, 32, 2, stride_kib=16)
    return folder


@contextmanager
def eaters(loader: LoaderProcess, quotas: list[int], folder: Path) -> Iterator[list[tuple[Child, Path]]]:
    with ExitStack() as opened:
        found = []
        for number, quota in enumerate(quotas):
            tally = folder / f"tally-{number}"
            child = opened.enter_context(start_eater(loader.endpoint, loader.store, quota, tally, number))
            found.append((child, tally))
        for child, _ in found:
            child.wait_ready()
        yield found


def eaten_within(found: list[tuple[Child, Path]], seconds: float) -> list[int]:
    before = [eaten(tally)[0] for _, tally in found]
    time.sleep(seconds)
    return [eaten(tally)[0] - number for (_, tally), number in zip(found, before, strict=True)]


def test_four_processes_share_one_arena_and_none_starves(store: Path, tmp_path: Path) -> None:
    quotas = [1, QUOTA, QUOTA, QUOTA]
    rate = ["--rate", "8MB/s"]
    with LoaderProcess(store, sum(quotas), rate) as loader, eaters(loader, quotas, tmp_path) as found:
        modest, *greedy = eaten_within(found, 3.0)
        assert min(modest, *greedy) > 10
        assert modest > 0.4 * max(greedy), "one ticket at a time gets its turn among floods"
        assert min(greedy) > 0.6 * max(greedy)
        assert (
            len({inode_of_arena(child.pid) for child, _ in found} | {inode_of_arena(loader.child.pid)}) == 1
        )
        assert sum(private_arena_bytes(child.pid) for child, _ in found) == 0
        assert [eaten(tally)[1] for _, tally in found] == [0] * NUM_CLIENTS


def test_clients_that_are_killed_leave_the_others_alone(store: Path, tmp_path: Path) -> None:
    _kill_clients(store, tmp_path, count=3)


@pytest.mark.stress
@pytest.mark.timeout(1800)
def test_fifty_killed_clients_leave_the_others_alone(store: Path, tmp_path: Path) -> None:
    _kill_clients(store, tmp_path, count=50)


def _kill_clients(store: Path, folder: Path, count: int) -> None:
    rng = random.Random(count)
    quotas = [QUOTA, QUOTA]
    with LoaderProcess(store, 3 * QUOTA) as loader, eaters(loader, quotas, folder) as found:
        fds = len(os.listdir(f"/proc/{loader.child.pid}/fd"))
        for number in range(count):
            with start_eater(loader.endpoint, store, QUOTA, folder / "victim", number) as victim:
                victim.wait_ready()
                time.sleep(rng.uniform(0.0, 0.2))
                victim.stop(0.0)
            assert min(eaten_within(found, 0.2)) > 0
        assert [child.poll() for child, _ in found] == [None, None]
        assert [eaten(tally)[1] for _, tally in found] == [0, 0]
        until = time.monotonic() + 5
        while len(os.listdir(f"/proc/{loader.child.pid}/fd")) > fds and time.monotonic() < until:
            time.sleep(0.05)
        assert len(os.listdir(f"/proc/{loader.child.pid}/fd")) <= fds


def inode_of_arena(pid: int) -> str:
    line = next(
        line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "sidestage-arena" in line
    )
    return line.split()[4]


def private_arena_bytes(pid: int) -> int:
    """Memory of the arena's mapping that is this process' alone."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    _, found, rest = text.partition("sidestage-arena")
    assert found
    rest = rest[: rest.index("VmFlags")]
    return sum(int(kib) for kib in re.findall(r"Anonymous:\s+(\d+) kB", rest)) * 1024
