"""A client's report to a real loader: it is counted like any command, and waits for nobody."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.loader_process import LoaderProcess
from support.synthetic_store import make_store

from compute.client import LoaderClient
from protocol.channel import QUEUE_LENGTH
from protocol.messages import Report

REPORT = Report("direct, lru", ("hits",), (1,), b"\x80")


@pytest.fixture
def loader(tmp_path: Path) -> Iterator[LoaderProcess]:
    make_store(tmp_path, 2, 8, top_k=2, stride_kib=64)
    with LoaderProcess(tmp_path, num_frames=8) as loader:
        yield loader


def await_a_turn(loader: LoaderProcess) -> None:
    before, until = loader.turns, time.monotonic() + 10
    while loader.turns == before:
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_report_is_a_command_that_was_heard(loader: LoaderProcess) -> None:
    with LoaderClient(loader.endpoint, quota=4) as client, loader.client(quota=0) as observer:
        client.report(REPORT)
        assert client.stats()["client_commands"] == 2
        assert observer.stats()["clients"] == 1
        assert client.num_renewals == 0


def test_a_loader_that_stands_still_is_told_nothing_and_not_waited_for(loader: LoaderProcess) -> None:
    with LoaderClient(loader.endpoint, quota=4, timeout_s=20) as client:
        loader.child.send_signal(signal.SIGSTOP)
        try:
            for _ in range(2 * QUEUE_LENGTH + 2):
                client.report(REPORT)
        finally:
            loader.child.send_signal(signal.SIGCONT)
        await_a_turn(loader)
        assert client.stats()["client_commands"] <= 3


def test_a_loader_that_died_is_no_error_for_a_report(loader: LoaderProcess) -> None:
    with LoaderClient(loader.endpoint, quota=4) as client:
        loader.child.send_signal(signal.SIGKILL)
        loader.child.close()
        client.report(REPORT)
        assert client.num_restarts == 0
