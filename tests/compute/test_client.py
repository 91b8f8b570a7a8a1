"""The loader's client against a real loader: every ticket ends once, with the right bytes, come what may."""

import gc
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.standalone_loader import standalone_loader
from support.synthetic_store import corrupt_blob, expected_blob, make_store

from compute.client import LoaderClient, Wanted
from compute.ledger import Completion
from compute.loader_process import OwnedLoader, start_loader
from compute.patience import MAX_RESTARTS_IN_VAIN
from protocol.errors import LoaderLostError, ProtocolError, RefusedError
from protocol.manifest import Manifest
from protocol.messages import Completions
from protocol.timeline import Timeline

NUM_KEYS = 32
BLOB_BYTES = 16 * 1024
#: Reads an expert in about 50 ms.
SLOW = 20 * BLOB_BYTES


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("client") / "store"
    make_store(folder, num_layers=4, num_experts=8, top_k=2, stride_kib=BLOB_BYTES // 1024)
    return folder


@pytest.fixture
def loader(store: Path) -> Iterator[OwnedLoader]:
    with start_loader(store, num_frames=16, num_clients=4, timeout_s=20) as loader:
        yield loader


@pytest.fixture
def slow_loader(store: Path) -> Iterator[OwnedLoader]:
    with start_loader(store, num_frames=16, num_clients=4, threads=1, rate=SLOW, timeout_s=20) as loader:
        yield loader


def collect(client: LoaderClient, count: int) -> list[Completion]:
    """Wait until `count` tickets have ended."""
    ended: list[Completion] = []
    while len(ended) < count:
        ended += client.wait()
    assert len(ended) == count
    return ended


def wanted(*keys: int) -> list[Wanted]:
    return [(key, 0) for key in keys]


def check_bytes(store: Path, completion: Completion, key: int) -> None:
    assert completion.is_current()
    assert completion.blob().tobytes() == expected_blob(Manifest.read(store), key)


@pytest.mark.parametrize("completions", ["word", "message"])
def test_every_expert_arrives_with_the_stores_bytes(
    loader: OwnedLoader, store: Path, completions: Completions
) -> None:
    with LoaderClient(loader.endpoint, quota=5, completions=completions) as client:
        for first in range(0, NUM_KEYS, 4):
            keys = range(first, first + 4)
            tickets = client.fetch(demand=wanted(*keys))
            ended = {completion.ticket: completion for completion in collect(client, 4)}
            for key, ticket in zip(keys, tickets, strict=True):
                check_bytes(store, ended[ticket], key)
            client.release(tickets)
        assert client.room == 5


def test_an_expert_in_the_host_cache_is_not_read_again(loader: OwnedLoader) -> None:
    with LoaderClient(loader.endpoint, quota=4) as client:
        for _ in range(3):
            tickets = client.fetch(demand=wanted(7))
            collect(client, 1)
            client.release(tickets)
        stats = client.stats()
    assert stats["bytes_read"] == BLOB_BYTES and stats["host_hits"] == 2


@pytest.mark.parametrize("completions", ["word", "message"])
def test_a_cancelled_ticket_ends_once_with_or_without_its_expert(
    slow_loader: OwnedLoader, store: Path, completions: Completions
) -> None:
    with LoaderClient(slow_loader.endpoint, quota=10, completions=completions) as client:
        keys = range(10)
        tickets = client.fetch(prefetch=wanted(*keys))
        first = collect(client, 1)
        client.fetch(cancel=tickets)
        ended = first + collect(client, 9)
        assert sorted(completion.ticket for completion in ended) == sorted(tickets)
        assert sum(completion.is_dropped for completion in ended) >= 6
        for completion in ended:
            assert not completion.fault
            if not completion.is_dropped:
                check_bytes(store, completion, keys[tickets.index(completion.ticket)])


def test_a_promoted_prefetch_overtakes_the_others(slow_loader: OwnedLoader) -> None:
    with LoaderClient(slow_loader.endpoint, quota=10) as client:
        tickets = client.fetch(prefetch=[(key, key) for key in range(10)])
        client.fetch(promote=tickets[-1:])
        order = [completion.ticket for completion in collect(client, 10)]
        assert order.index(tickets[-1]) <= 2


def test_promoting_and_cancelling_what_has_ended_is_no_offence(loader: OwnedLoader) -> None:
    with LoaderClient(loader.endpoint, quota=4) as client:
        tickets = client.fetch(prefetch=wanted(1, 2, 3))
        collect(client, 3)
        client.fetch(promote=tickets[:1], cancel=tickets[1:])
        client.fetch(released=tickets)
        assert client.stats()["client_tickets"] == 0


def test_what_is_released_makes_room_in_the_same_message(loader: OwnedLoader) -> None:
    with LoaderClient(loader.endpoint, quota=2) as client:
        tickets = client.fetch(demand=wanted(0, 1))
        for key in range(2, 20):
            collect(client, len(client.tickets.asked))
            tickets = [tickets[1], *client.fetch(demand=wanted(key), released=tickets[:1])]
        assert client.stats()["client_tickets"] == 2


def test_a_damaged_expert_ends_in_a_fault_with_a_sentence(tmp_path: Path) -> None:
    manifest = make_store(tmp_path / "store", 1, 4, 2, stride_kib=16)
    corrupt_blob(tmp_path / "store", manifest, key=2)
    with (
        start_loader(tmp_path / "store", num_frames=4) as loader,
        LoaderClient(loader.endpoint, quota=4) as client,
    ):
        tickets = client.fetch(demand=wanted(1, 2))
        ended = {completion.ticket: completion for completion in collect(client, 2)}
        check_bytes(tmp_path / "store", ended[tickets[0]], 1)
        assert ended[tickets[1]].is_dropped and "checksum" in ended[tickets[1]].fault


def test_a_key_outside_the_store_ends_in_a_fault(loader: OwnedLoader) -> None:
    with LoaderClient(loader.endpoint, quota=4) as client:
        client.fetch(demand=wanted(NUM_KEYS))
        (completion,) = collect(client, 1)
        assert completion.is_dropped and "outside" in completion.fault


def test_a_release_of_a_strangers_ticket_is_a_protocol_error(loader: OwnedLoader) -> None:
    with LoaderClient(loader.endpoint, quota=4) as client, LoaderClient(loader.endpoint, quota=4) as other:
        (ticket,) = client.fetch(demand=wanted(3))
        (completion,) = collect(client, 1)
        other.tickets.held[ticket] = replace(completion, arena=other.arena)
        other.release([ticket])
        with pytest.raises(ProtocolError, match="disagree"):
            other.stats()


def test_two_clients_get_the_same_expert_from_one_read(slow_loader: OwnedLoader, store: Path) -> None:
    with (
        LoaderClient(slow_loader.endpoint, quota=4) as one,
        LoaderClient(slow_loader.endpoint, quota=4) as two,
    ):
        one.fetch(demand=wanted(9))
        two.fetch(demand=wanted(9))
        for client in (one, two):
            (completion,) = collect(client, 1)
            check_bytes(store, completion, 9)
        assert one.stats()["reads"] == 1


def test_leases_go_back_when_a_client_closes(loader: OwnedLoader) -> None:
    with LoaderClient(loader.endpoint, quota=4) as watcher:
        with LoaderClient(loader.endpoint, quota=8) as client:
            client.fetch(demand=wanted(*range(8)))
            collect(client, 8)
            assert watcher.stats()["frames_leased"] == 8
        until = time.monotonic() + 10
        while watcher.stats()["frames_leased"] and time.monotonic() < until:
            time.sleep(0.01)
        assert watcher.stats()["frames_leased"] == 0


def test_wait_returns_when_another_fd_is_readable(loader: OwnedLoader) -> None:
    wake = os.eventfd(0)
    with LoaderClient(loader.endpoint, quota=4) as client:
        threading.Timer(0.05, os.eventfd_write, (wake, 1)).start()
        assert client.wait(wake=(wake,)) == []
    os.close(wake)


@pytest.mark.parametrize("completions", ["word", "message"])
def test_threads_may_ask_while_another_waits(loader: OwnedLoader, completions: Completions) -> None:
    """What one thread meets on the bus while it sends must wake the one that waits."""
    with LoaderClient(loader.endpoint, quota=16, completions=completions) as client:
        num_asked, asked = 2 * 200, Counter[int]()
        lock = threading.Lock()

        def ask(keys: list[int]) -> None:
            for number in range(200):
                while True:
                    with lock:
                        if client.room:
                            asked.update(client.fetch(demand=wanted(keys[number % len(keys)])))
                            break
                    time.sleep(0.0002)

        threads = [threading.Thread(target=ask, args=([*range(start, 32, 2)],)) for start in (0, 1)]
        for thread in threads:
            thread.start()
        ended = Counter[int]()
        while ended.total() < num_asked:
            for completion in client.wait():
                ended[completion.ticket] += 1
                assert not completion.is_dropped
                client.release([completion.ticket])
        for thread in threads:
            thread.join()
        assert ended == asked and set(ended.values()) == {1}


# --- the loader dies -----------------------------------------------------------------------------


@pytest.mark.parametrize("completions", ["word", "message"])
def test_a_killed_loader_is_revived_and_no_ticket_is_lost(
    slow_loader: OwnedLoader, store: Path, completions: Completions
) -> None:
    loader = slow_loader
    with LoaderClient(
        loader.endpoint, quota=12, completions=completions, revive=loader.restart, timeout_s=20
    ) as client:
        keys = [*range(12)]
        tickets = client.fetch(demand=wanted(*keys[:3]))
        held = collect(client, 3)
        tickets += client.fetch(demand=wanted(*keys[3:6]), prefetch=wanted(*keys[6:]))
        held += collect(client, 2)
        os.kill(loader.pid, signal.SIGKILL)
        ended = {completion.ticket: completion for completion in held + collect(client, 7)}
        assert client.num_restarts == 1
        for key, ticket in zip(keys, tickets, strict=True):
            check_bytes(store, ended[ticket], key)
        assert client.stats()["client_tickets"] == 12


def test_a_loader_that_dies_again_and_again_is_revived_each_time(loader: OwnedLoader, store: Path) -> None:
    with LoaderClient(loader.endpoint, quota=4, revive=loader.restart, timeout_s=20) as client:
        for key in range(2 * MAX_RESTARTS_IN_VAIN):
            os.kill(loader.pid, signal.SIGKILL)
            (ticket,) = client.fetch(demand=wanted(key))
            (completion,) = collect(client, 1)
            check_bytes(store, completion, key)
            client.fetch(released=[ticket])
        assert client.num_restarts == 2 * MAX_RESTARTS_IN_VAIN


def test_a_loader_that_never_gets_to_an_expert_is_given_up_after_a_few_restarts(loader: OwnedLoader) -> None:
    def revive_and_kill() -> None:
        loader.restart()
        os.kill(loader.pid, signal.SIGKILL)

    with LoaderClient(loader.endpoint, quota=4, revive=revive_and_kill, timeout_s=20) as client:
        os.kill(loader.pid, signal.SIGKILL)
        client.fetch(demand=wanted(1))
        with pytest.raises(LoaderLostError, match=f"restarted {MAX_RESTARTS_IN_VAIN} times"):
            collect(client, 1)
    assert loader.num_restarts == MAX_RESTARTS_IN_VAIN


def test_a_hung_loader_is_replaced_by_its_owner(loader: OwnedLoader, store: Path) -> None:
    with LoaderClient(loader.endpoint, quota=4, revive=loader.restart, timeout_s=2) as client:
        os.kill(loader.pid, signal.SIGSTOP)
        client.fetch(demand=wanted(5))
        (completion,) = collect(client, 1)
        check_bytes(store, completion, 5)
        assert client.num_restarts == 1


def test_a_successor_that_hangs_before_it_lets_anybody_in_is_replaced_too(
    loader: OwnedLoader, store: Path
) -> None:
    signals = iter([signal.SIGSTOP])

    def revive() -> None:
        loader.restart()
        os.kill(loader.pid, next(signals, signal.SIGCONT))

    with LoaderClient(loader.endpoint, quota=4, revive=revive, timeout_s=30) as client:
        os.kill(loader.pid, signal.SIGKILL)
        started = time.monotonic()
        client.fetch(demand=wanted(5))
        (completion,) = collect(client, 1)
        check_bytes(store, completion, 5)
        assert loader.num_restarts == 2
        assert time.monotonic() - started < 15, "half of the timeout is not waited for"


def test_a_hung_loader_of_others_is_an_error_that_names_the_timeout(loader: OwnedLoader) -> None:
    with LoaderClient(loader.endpoint, quota=4, timeout_s=0.6) as client:
        os.kill(loader.pid, signal.SIGSTOP)
        client.fetch(demand=wanted(5))
        check_error_within(3, lambda: collect(client, 1), "SIDESTAGE_TIMEOUT")
    os.kill(loader.pid, signal.SIGKILL)


def test_a_loader_that_is_too_slow_is_an_error_that_names_the_timeout(store: Path) -> None:
    with (
        start_loader(store, num_frames=4, rate=1000) as loader,
        LoaderClient(loader.endpoint, quota=4, timeout_s=0.6) as client,
    ):
        client.fetch(demand=wanted(5))
        check_error_within(3, lambda: collect(client, 1), "no expert for 0.6 s .*SIDESTAGE_TIMEOUT")


def test_a_loader_that_does_not_come_back_is_an_error_and_stays_one(loader: OwnedLoader) -> None:
    with LoaderClient(loader.endpoint, quota=4, timeout_s=0.6) as client:
        os.kill(loader.pid, signal.SIGKILL)
        client.fetch(demand=wanted(5))
        check_error_within(3, lambda: collect(client, 1), "not come back within 0.6 s .*SIDESTAGE_TIMEOUT")
        with pytest.raises(LoaderLostError):
            client.completed()
        with pytest.raises(LoaderLostError):
            client.fetch(demand=wanted(6))


def test_a_client_finds_the_loader_that_somebody_else_restarted(loader: OwnedLoader, store: Path) -> None:
    with LoaderClient(loader.endpoint, quota=4, timeout_s=20) as client:
        tickets = client.fetch(demand=wanted(1, 2))
        held = collect(client, 2)
        os.kill(loader.pid, signal.SIGKILL)
        supervisor = threading.Timer(0.3, loader.restart)
        supervisor.start()
        tickets += client.fetch(demand=wanted(3, 4))
        ended = {completion.ticket: completion for completion in held + collect(client, 2)}
        supervisor.join()
        for key, ticket in zip((1, 2, 3, 4), tickets, strict=True):
            check_bytes(store, ended[ticket], key)


def test_what_was_cancelled_before_the_loader_died_ends_without_it(slow_loader: OwnedLoader) -> None:
    loader = slow_loader
    with LoaderClient(loader.endpoint, quota=8, revive=loader.restart, timeout_s=20) as client:
        os.kill(loader.pid, signal.SIGSTOP)
        tickets = client.fetch(prefetch=wanted(*range(8)))
        client.fetch(cancel=tickets[1:])
        os.kill(loader.pid, signal.SIGKILL)
        ended = {completion.ticket: completion for completion in collect(client, 8)}
        assert not ended[tickets[0]].is_dropped
        assert all(ended[ticket].is_dropped and not ended[ticket].fault for ticket in tickets[1:])


def test_a_loader_that_was_stopped_in_order_drops_what_it_did_not_get_to(
    slow_loader: OwnedLoader, store: Path
) -> None:
    loader = slow_loader
    with LoaderClient(loader.endpoint, quota=8, revive=loader.restart, timeout_s=20) as client:
        tickets = client.fetch(demand=wanted(*range(8)))
        os.kill(loader.pid, signal.SIGTERM)
        for completion in collect(client, 8):
            assert not completion.fault
            if not completion.is_dropped:
                check_bytes(store, completion, tickets.index(completion.ticket))
        (ticket,) = client.fetch(demand=wanted(9), released=[*client.tickets.held])
        (completion,) = collect(client, 1)
        assert completion.ticket == ticket
        check_bytes(store, completion, 9)


def test_counters_can_be_asked_of_the_successor(loader: OwnedLoader) -> None:
    with LoaderClient(loader.endpoint, quota=4, revive=loader.restart, timeout_s=20) as client:
        epoch = client.stats()["epoch"]
        os.kill(loader.pid, signal.SIGKILL)
        stats = client.stats()
        assert stats["epoch"] == epoch + 1 and stats["loader_restarts"] == 1


def test_frames_held_of_a_lost_arena_stay_readable_while_the_rest_is_asked_again(
    store: Path, socket_folder: Path
) -> None:
    """A loader that stood alone takes its arena with it; what we have mapped stays with us."""
    with standalone_loader(store, socket_folder, num_frames=8) as first:
        client = LoaderClient(socket_folder / "door", quota=8, timeout_s=20)
        old = client.fetch(demand=wanted(0, 1, 2))
        held = {completion.ticket: completion for completion in collect(client, 3)}
        os.kill(first.pid, signal.SIGKILL)
        new = client.fetch(demand=wanted(3, 4, 5), released=old[2:])
    with client, standalone_loader(store, socket_folder, num_frames=8):
        held.update((completion.ticket, completion) for completion in collect(client, 3))
        for key, ticket in zip((0, 1, 3, 4, 5), [*old[:2], *new], strict=True):
            check_bytes(store, held[ticket], key)
        client.fetch(released=[*old[:2], *new], demand=wanted(*range(6, 14)))
        for completion in collect(client, 8):
            assert completion.is_current() and not completion.is_dropped
        assert client.stats()["client_tickets"] == 8


def test_a_successor_with_an_arena_of_another_size_is_refused(store: Path, socket_folder: Path) -> None:
    with standalone_loader(store, socket_folder, num_frames=8) as first:
        client = LoaderClient(socket_folder / "door", quota=4, timeout_s=20)
        os.kill(first.pid, signal.SIGKILL)
        client.fetch(demand=wanted(1))
    with (
        client,
        standalone_loader(store, socket_folder, num_frames=12),
        pytest.raises(RefusedError, match="--ram"),
    ):
        collect(client, 1)


def test_a_successor_with_another_store_is_refused(store: Path, socket_folder: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "other", 4, 8, 2, stride_kib=BLOB_BYTES // 1024, seed=1)
    with standalone_loader(store, socket_folder, num_frames=8) as first:
        client = LoaderClient(socket_folder / "door", quota=4, timeout_s=20)
        os.kill(first.pid, signal.SIGKILL)
        client.fetch(demand=wanted(1))
    other = standalone_loader(tmp_path / "other", socket_folder, num_frames=8)
    with client, other, pytest.raises(RefusedError, match="store"):
        collect(client, 1)


# --- coming in and leaving -----------------------------------------------------------------------


def test_a_loader_of_another_store_is_refused(loader: OwnedLoader) -> None:
    with pytest.raises(RefusedError, match="store"):
        LoaderClient(loader.endpoint, quota=4, store="0" * 32)


def test_a_quota_beyond_the_arena_is_refused(loader: OwnedLoader) -> None:
    with pytest.raises(RefusedError, match="16"):
        LoaderClient(loader.endpoint, quota=17)


def test_a_door_that_nobody_opens_is_an_error_within_the_timeout(socket_folder: Path) -> None:
    check_error_within(
        3, lambda: LoaderClient(socket_folder / "door", quota=4, timeout_s=0.5), "no loader answers .*TIMEOUT"
    )


def test_a_folder_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    endpoint = tmp_path / "nowhere" / "door"
    check_error_within(2, lambda: LoaderClient(endpoint, quota=4, timeout_s=60), "no loader answers")


def test_a_loader_hung_from_the_start_is_an_error_within_the_timeout(loader: OwnedLoader) -> None:
    os.kill(loader.pid, signal.SIGSTOP)
    check_error_within(3, lambda: LoaderClient(loader.endpoint, quota=4, timeout_s=0.5), "TIMEOUT")
    os.kill(loader.pid, signal.SIGKILL)


def test_closing_leaves_no_fd_and_no_mapping(loader: OwnedLoader) -> None:
    def fds() -> set[str]:
        gc.collect()
        return {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)}

    before, num_before = fds(), len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        client = LoaderClient(loader.endpoint, quota=4)
        client.fetch(demand=wanted(1, 2, 3))
        collect(client, 3)
        client.close()
        client.close()
        with pytest.raises(RuntimeError, match="closed"):
            client.completed()
    del client
    assert fds() <= before and len(os.listdir("/proc/self/fd")) <= num_before
    maps = Path("/proc/self/maps").read_text()
    assert "sidestage-arena" not in maps


def test_a_fork_may_not_use_the_client_and_cannot_close_it(loader: OwnedLoader, store: Path) -> None:
    with LoaderClient(loader.endpoint, quota=4) as client:
        child = os.fork()
        if not child:
            try:
                client.completed()
            except RuntimeError as error:
                client.close()
                os._exit(0 if "fork" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        client.fetch(demand=wanted(4))
        (completion,) = collect(client, 1)
        check_bytes(store, completion, 4)


def test_the_timeline_draws_an_arrow_for_every_ticket(loader: OwnedLoader, tmp_path: Path) -> None:
    timeline = Timeline("compute")
    with LoaderClient(loader.endpoint, quota=4, timeline=timeline) as client:
        (ticket,) = client.fetch(demand=wanted(1))
        collect(client, 1)
        flow_id = client.flow_id(ticket)
    timeline.write(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())
    assert [event["id"] for event in events if event["ph"] == "s"] == [flow_id]


def check_error_within(seconds: float, act: Callable[[], object], match: str) -> None:
    started = time.monotonic()
    with pytest.raises(LoaderLostError, match=match):
        act()
    assert time.monotonic() - started < seconds


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")
