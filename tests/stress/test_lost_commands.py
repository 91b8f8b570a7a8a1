"""Commands that get lost on their way to a living loader: noticed in a silence, and made good."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.loader_process import LoaderProcess
from support.synthetic_store import expected_blob, make_store

from compute.client import LoaderClient
from compute.roll_call import ROLL_CALL_S, Heard, RollCall
from loader.faults import FaultBoard, Word
from protocol.errors import SidestageError
from protocol.messages import Completions


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lossy") / "store"
    make_store(folder, 2, 8, 2, stride_kib=16)
    return folder


@pytest.fixture
def board(tmp_path: Path) -> Iterator[FaultBoard]:
    with FaultBoard.create(tmp_path / "board") as board:
        yield board


@pytest.fixture
def loader(store: Path, board: FaultBoard, tmp_path: Path) -> Iterator[LoaderProcess]:
    with LoaderProcess(store, 8, ["--faults", str(tmp_path / "board")]) as loader:
        yield loader


def take(client: LoaderClient, keys: list[int]) -> dict[int, int]:
    """Demand `keys` and wait for all of them; checks every byte. Returns key -> ticket."""
    awaited = dict(zip(client.fetch(demand=[(key, 0) for key in keys]), keys, strict=True))
    found: dict[int, int] = {}
    while len(found) < len(keys):
        for completion in client.wait():
            assert not completion.is_dropped
            key = awaited[completion.ticket]
            assert completion.blob().tobytes() == expected_blob_of(client, key)
            found[key] = completion.ticket
    return found


def expected_blob_of(client: LoaderClient, key: int) -> bytes:
    from protocol.manifest import Manifest

    return expected_blob(Manifest.read(Path(client.store_path)), key)


@pytest.mark.parametrize("completions", ["word", "message"])
def test_a_lost_fetch_is_noticed_and_asked_again(
    loader: LoaderProcess, board: FaultBoard, completions: Completions
) -> None:
    with LoaderClient(loader.endpoint, quota=4, completions=completions) as client:
        first = take(client, [0, 1, 2, 3])
        board[Word.LOST_COMMANDS] = 1
        started = time.monotonic()
        tickets = client.fetch(demand=[(9, 0), (10, 0)], released=[first[0], first[1]])
        ended = client.wait()
        while len(ended) < 2:
            ended += client.wait()
        assert {completion.ticket for completion in ended} == set(tickets)
        assert time.monotonic() - started < 5
        assert client.num_renewals == 1 and client.num_restarts == 0
        assert all(client.tickets.held[first[key]].is_current() for key in (2, 3))
        stats = client.stats()
        assert (stats["frames_leased"], stats["client_tickets"]) == (4, 4)


def test_a_complaint_that_a_lost_command_explains_is_no_quarrel(
    loader: LoaderProcess, board: FaultBoard
) -> None:
    with LoaderClient(loader.endpoint, quota=4) as client:
        first = take(client, [0, 1])
        board[Word.LOST_COMMANDS] = 1
        lost = client.fetch(prefetch=[(9, 5), (10, 5)], released=[first[0]])
        client.fetch(demand=[(11, 0)], promote=[lost[0]], cancel=[lost[1]])
        ended = client.wait()
        while len(ended) < 3:
            ended += client.wait()
        assert [completion.fault for completion in ended] == ["", "", ""]
        assert client.num_renewals == 1


def test_a_lost_release_does_not_cost_an_expert(loader: LoaderProcess, board: FaultBoard) -> None:
    with LoaderClient(loader.endpoint, quota=2) as client:
        first = take(client, [0, 1])
        board[Word.LOST_COMMANDS] = 1
        client.release([*first.values()])
        tickets = client.fetch(demand=[(9, 0), (10, 0)])
        while tickets:
            (completion, *_) = ended = client.wait()
            assert not completion.fault
            again = [c for c in ended if c.is_dropped]
            tickets = client.fetch(demand=[(9, 0)] * len(again)) if again else tickets[len(ended) :]
        assert client.num_renewals == 1


def test_a_lost_question_for_counters_is_asked_again(loader: LoaderProcess, board: FaultBoard) -> None:
    with LoaderClient(loader.endpoint, quota=4) as client:
        take(client, [0])
        board[Word.LOST_COMMANDS] = 1
        assert client.stats()["client_tickets"] == 1


def test_a_slow_disk_is_waited_for_without_a_new_session(loader: LoaderProcess, board: FaultBoard) -> None:
    with LoaderClient(loader.endpoint, quota=4) as client:
        board[Word.READ_DELAY_US] = int(2.5e6 * ROLL_CALL_S)
        take(client, [0])
        assert client.num_renewals == 0


def test_a_loader_without_address_space_says_so_and_the_next_one_works(
    loader: LoaderProcess, board: FaultBoard
) -> None:
    with LoaderClient(loader.endpoint, quota=4) as client:
        take(client, [0, 1])
        board[Word.FULL_STARTS] = 1
        loader.child.close(0.0)
        with pytest.raises(SidestageError, match=r"does not fit into this process .*--ram"):
            loader.start()
        loader.child.close()
        loader.start()
        take(client, [2])
        assert client.num_restarts == 1


def test_the_roll_is_called_in_a_silence_and_not_before() -> None:
    roll_call = RollCall()
    roll_call.note_progress(100.0)
    assert not roll_call.is_due(100.5)
    assert roll_call.is_due(101.1)
    roll_call.ask(101.1, turns=50)
    assert not roll_call.is_due(105.0)
    assert roll_call.judge(101.2, 0, turns=52) is Heard.ALL
    roll_call.ask(103.0, turns=60)
    assert roll_call.judge(103.1, 1, turns=61) is Heard.NOT_ALL


def test_an_answer_that_never_comes_was_lost_if_the_loader_had_its_turns() -> None:
    roll_call = RollCall()
    roll_call.ask(100.0, turns=0)
    assert roll_call.judge(101.5, None, turns=2) is Heard.UNKNOWN
    assert roll_call.judge(100.5, None, turns=200) is Heard.UNKNOWN
    assert roll_call.judge(101.5, None, turns=200) is Heard.NOT_ALL
