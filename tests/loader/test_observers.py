"""Observers: they see every client's report, take no place of a client's, and may do nothing else."""

from collections.abc import Iterator

import pytest
from support.loader_process import LoaderProcess, WireClient
from support.synthetic_store import make_store

from loader.queue import TicketId
from loader.reception import MAX_OBSERVERS
from loader.waits import Waits
from protocol.errors import RefusedError
from protocol.messages import Fault, Fetch, Report, Reported, Request, Snapshot, Stats

REPORT = Report("direct, lru", ("hits", "misses"), (5, 2), b"\x81\x00")


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoaderProcess]:
    """One loader with 16 experts, 8 frames and 2 rows for clients."""
    folder = tmp_path_factory.mktemp("store")
    make_store(folder, 2, 8, top_k=2, stride_kib=64)
    with LoaderProcess(folder, num_frames=8, num_clients=2) as loader:
        yield loader


def seen_by(observer: WireClient) -> list[Reported]:
    """Every client that an observer is shown before its Stats."""
    observer.send(Snapshot())
    seen = []
    for event in observer.events():
        match event:
            case Reported():
                seen.append(event)
            case Stats():
                return seen
    raise AssertionError("no Stats came")


def test_an_observer_sees_what_each_client_reported_last(loader: LoaderProcess) -> None:
    with loader.client(quota=4) as one, loader.client(quota=2) as other, loader.client(quota=0) as observer:
        one.send(Report("", (), (), b""))
        one.send(REPORT)
        one.stats()
        first, second = seen_by(observer)
        assert (first.client, first.quota, first.about) == (one.number, 4, "direct, lru")
        assert (first.names, first.values, first.resident) == (REPORT.names, REPORT.values, REPORT.resident)
        assert first.age_us >= 0
        assert (second.client, second.age_us, second.names) == (other.number, -1, ())


def test_an_observer_takes_neither_row_nor_frames(loader: LoaderProcess) -> None:
    with loader.client(quota=0) as observer:
        before = loader.arena.clients.copy()
        with loader.client(quota=4), loader.client(quota=4):
            assert [client.quota for client in seen_by(observer)] == [4, 4]
            assert observer.stats()["clients"] == 2
        assert observer.number < 0
        assert (before[:, 0] == 0).all()


def test_an_observer_that_asks_for_experts_is_refused(loader: LoaderProcess) -> None:
    with loader.client(quota=0) as observer:
        before = observer.stats()["fetched"]
        observer.send(Fetch(demand=(Request(observer.ticket(), 0, 0),)))
        assert "observer" in observer.expect(Fault).text
        assert observer.stats()["fetched"] == before


def test_a_client_is_not_shown_the_others(loader: LoaderProcess) -> None:
    with loader.client(quota=4) as one, loader.client(quota=4) as other:
        other.send(REPORT)
        one.send(Snapshot())
        assert isinstance(next(one.events()), Stats)


def test_only_so_many_observers_come_in(loader: LoaderProcess) -> None:
    observers = [loader.client(quota=0) for _ in range(MAX_OBSERVERS)]
    with pytest.raises(RefusedError, match="observers"):
        loader.client(quota=0)
    for observer in observers:
        observer.close()
    loader.client(quota=0).close()


@pytest.mark.parametrize(
    "report",
    [
        Report("x" * 1000, (), (), b""),
        Report("", ("hits",), (), b""),
        Report("", (), (), b"\x00" * 3),
        Report("", ("n",) * 100, (0,) * 100, b""),
    ],
    ids=["words", "values", "bits", "names"],
)
def test_a_report_that_is_too_long_is_refused(loader: LoaderProcess, report: Report) -> None:
    with loader.client(quota=4) as client, loader.client(quota=0) as observer:
        client.send(report)
        assert client.expect(Fault).kind == "report"
        assert [shown.age_us for shown in seen_by(observer)] == [-1]


def test_what_had_to_be_read_was_waited_for(loader: LoaderProcess) -> None:
    with loader.client(quota=4) as client:
        before = client.stats()
        tickets = client.demand(14, 15)
        for ticket in tickets:
            client.wait(ticket)
        after = client.stats()
        client.wait(*client.demand(15))
        at_last = client.stats()
    assert after["waits"] - before["waits"] == 2
    assert after["wait_us"] > before["wait_us"]
    assert at_last["waits"] == after["waits"]


def test_a_wait_that_is_forgotten_counts_for_nothing() -> None:
    waits = Waits()
    one, other = TicketId(0, 64), TicketId(0, 65)
    waits.begin(one, 100)
    waits.begin(other, 100)
    waits.forget(one)
    waits.end(other, 150)
    waits.forget(other)
    assert (waits.count, waits.total_ns, len(waits)) == (1, 50, 0)
