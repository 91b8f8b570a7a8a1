"""The loader as a process: real sockets, a real arena, a synthetic store, and things that break."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from support.lessee import start_lessee
from support.loader_process import LoaderProcess, WireClient
from support.synthetic_store import corrupt_blob, expected_blob, make_store

from protocol.arena import ArenaGeometry, create_arena_fd, split_completion
from protocol.child import Child
from protocol.codec import encode
from protocol.errors import LoaderLostError, RefusedError, SidestageError
from protocol.folder import create_folder, remove_folder
from protocol.manifest import Manifest
from protocol.messages import (
    Dropped,
    Fault,
    Fetch,
    Goodbye,
    Hello,
    Ready,
    Release,
    Request,
    Shutdown,
    Snapshot,
    Stopped,
)

NUM_LAYERS, NUM_EXPERTS = 2, 8


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    make_store(folder, NUM_LAYERS, NUM_EXPERTS, top_k=2, stride_kib=64)
    return folder


@pytest.fixture(scope="module")
def manifest(store: Path) -> Manifest:
    return Manifest.read(store)


@pytest.fixture
def loader(store: Path) -> Iterator[LoaderProcess]:
    with LoaderProcess(store, num_frames=8) as loader:
        yield loader


@pytest.fixture
def slow_loader(store: Path) -> Iterator[LoaderProcess]:
    """A loader whose disk takes 0.1 s for an expert."""
    with LoaderProcess(store, num_frames=8, extra=["--rate", f"{64 * 1024 * 10}B/s"]) as loader:
        yield loader


def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


# --- experts come ------------------------------------------------------------------------------


def test_a_demanded_expert_arrives_with_the_right_bytes(loader: LoaderProcess, manifest: Manifest) -> None:
    with loader.client(quota=8) as client:
        keys = [0, 7, 8, 15]
        for key, ticket in zip(keys, client.demand(*keys), strict=True):
            assert client.blob(ticket) == expected_blob(manifest, key)
        assert client.stats()["reads"] == 4


def test_every_expert_can_pass_through_few_frames(loader: LoaderProcess, manifest: Manifest) -> None:
    with loader.client(quota=2) as client:
        for key in [*range(manifest.num_keys)] * 2:
            (ticket,) = client.demand(key)
            assert client.blob(ticket) == expected_blob(manifest, key)
            client.send(Release((ticket,)))
        assert client.stats()["frames_sealed"] == 8


def test_an_expert_in_the_host_cache_is_not_read_again(loader: LoaderProcess, manifest: Manifest) -> None:
    with loader.client(quota=2) as client:
        (first,) = client.demand(3)
        client.wait(first)
        client.send(Release((first,)))
        (second,) = client.demand(3)
        assert client.blob(second) == expected_blob(manifest, 3)
        stats = client.stats()
        assert (stats["reads"], stats["host_hits"], stats["bytes_read"]) == (1, 1, manifest.layout.stride)


def test_two_clients_share_one_read_and_one_frame(slow_loader: LoaderProcess, manifest: Manifest) -> None:
    with slow_loader.client(quota=4) as one, slow_loader.client(quota=4) as other:
        (first,), (second,) = one.demand(5), other.demand(5)
        assert one.blob(first) == other.blob(second) == expected_blob(manifest, 5)
        assert one.wait(first) == other.wait(second)
        stats = one.stats()
        assert (stats["reads"], stats["coalesced"], stats["frames_leased"]) == (1, 1, 1)
        one.send(Release((first,)))
        assert one.stats()["frames_leased"] == 1


def test_demand_overtakes_prefetch(slow_loader: LoaderProcess) -> None:
    with slow_loader.client(quota=8) as client:
        ahead = client.prefetch(0, 1, 2, 3)
        (now,) = client.demand(9)
        client.wait(now)
        assert not any(client.word(ticket) for ticket in ahead[1:])


def test_a_promoted_prefetch_overtakes_the_others(slow_loader: LoaderProcess) -> None:
    with slow_loader.client(quota=8) as client:
        ahead = client.prefetch(0, 1, 2, 3)
        client.send(Fetch(promote=(ahead[3],)))
        client.wait(ahead[3])
        assert not client.word(ahead[1]) and not client.word(ahead[2])


def test_a_cancelled_ticket_ends_in_dropped(slow_loader: LoaderProcess) -> None:
    with slow_loader.client(quota=8) as client:
        first, waiting = client.demand(0, 1)
        client.send(Fetch(cancel=(waiting,)))
        assert client.wait(waiting) is None
        assert client.wait(first) is not None
        client.send(Fetch(cancel=(first, waiting)))
        stats = client.stats()
        assert (stats["cancelled"], stats["reads"], stats["client_tickets"]) == (1, 1, 1)


def test_a_read_that_nobody_waits_for_any_more_is_given_up(slow_loader: LoaderProcess) -> None:
    with slow_loader.client(quota=8) as client:
        (ticket,) = client.demand(0)
        until(lambda: client.stats()["queue_depth"] == 0)
        client.send(Fetch(cancel=(ticket,)))
        assert client.wait(ticket) is None
        (next_ticket,) = client.demand(1)
        client.wait(next_ticket)
        stats = client.stats()
        assert (stats["reads"], stats["frames_sealed"], stats["frames_leased"]) == (1, 1, 1)


def test_no_client_starves_another(slow_loader: LoaderProcess) -> None:
    with slow_loader.client(quota=6) as greedy, slow_loader.client(quota=2) as modest:
        greedy_tickets = greedy.demand(0, 1, 2, 3, 4, 5)
        (ticket,) = modest.demand(9, deadline=10**6)
        modest.wait(ticket)
        assert sum(bool(greedy.word(t)) for t in greedy_tickets) <= 3


def test_a_client_that_asked_for_messages_is_told_by_messages(slow_loader: LoaderProcess) -> None:
    with slow_loader.client(quota=4, completions="message") as client:
        tickets = client.demand(1, 2, 3)
        client.send(Fetch(cancel=(tickets[2],)))
        assert client.expect(Dropped).tickets == (tickets[2],)
        words = client.staged_words(tickets[:2])
        assert [words[ticket] for ticket in tickets[:2]] == [client.word(ticket) for ticket in tickets[:2]]
        with pytest.raises(BlockingIOError):
            os.eventfd_read(client.eventfd)


def test_a_stated_disk_rate_is_kept(slow_loader: LoaderProcess) -> None:
    with slow_loader.client(quota=8) as client:
        begin = time.monotonic()
        for ticket in client.demand(0, 1, 2, 3, 4):
            client.wait(ticket)
        assert 0.5 <= time.monotonic() - begin < 1.0
        assert client.stats()["read_us"] >= 500_000


# --- the door ----------------------------------------------------------------------------------


def test_quotas_beyond_the_arena_are_refused_at_the_door(loader: LoaderProcess) -> None:
    with loader.client(quota=6):
        with pytest.raises(RefusedError, match="2 of 8 are not promised"):
            loader.client(quota=3)
        with loader.client(quota=2):
            pass
    until(lambda: not loader.arena.clients[:, 0].any())
    loader.client(quota=8).close()


@pytest.mark.parametrize("quota", [-1, 9, 2**40])
def test_impossible_quotas_are_refused(loader: LoaderProcess, quota: int) -> None:
    with pytest.raises(RefusedError, match="frames asked"):
        loader.client(quota)


def test_a_client_of_another_store_is_refused(loader: LoaderProcess, manifest: Manifest) -> None:
    with pytest.raises(RefusedError, match="attach to a loader of that store"):
        WireClient(loader.endpoint, 1, store="00" * 16)
    WireClient(loader.endpoint, 1, store=manifest.fingerprint).close()


def test_a_client_of_another_version_is_refused(loader: LoaderProcess) -> None:
    with pytest.raises(RefusedError, match="protocol version 99"):
        WireClient(loader.endpoint, 1, version=99)


def test_more_clients_than_rows_are_refused(store: Path) -> None:
    with LoaderProcess(store, num_frames=8, num_clients=2) as loader:
        with loader.client(1), loader.client(1), pytest.raises(RefusedError, match="2 clients are in"):
            loader.client(1)
        loader.client(1).close()


# --- clients that err --------------------------------------------------------------------------


def test_commands_before_hello_are_a_fault(loader: LoaderProcess) -> None:
    with loader.client(1) as client:
        client.send(Hello(client.number, ()))
        assert "says it once" in client.expect(Fault).text
        client.send(Hello(client.number + 1, ()))
        assert client.expect(Fault).kind == "order"


def test_errors_of_one_client_reach_it_alone(loader: LoaderProcess, manifest: Manifest) -> None:
    with loader.client(2) as wrong, loader.client(2) as right:
        tickets = wrong.demand(0, 1, 2)
        fault = wrong.expect(Fault)
        assert (fault.kind, fault.tickets) == ("quota", (tickets[2],))
        assert wrong.wait(tickets[2]) is None
        (ticket,) = wrong.demand(3)
        assert wrong.expect(Fault).kind == "quota"
        wrong.send(Release((tickets[0], tickets[0], 2**40)))
        assert wrong.expect(Fault).kind == "ticket"
        (ticket,) = wrong.demand(10**6)
        assert wrong.expect(Fault).kind == "key"
        assert wrong.wait(ticket) is None
        (ticket,) = right.demand(3)
        assert right.blob(ticket) == expected_blob(manifest, 3)
        assert right.bus.receive(0.05) is None


def test_garbage_on_the_bus_and_at_the_door_does_no_harm(loader: LoaderProcess, manifest: Manifest) -> None:
    dice = random.Random(1)
    with loader.client(4) as client:
        good = encode(Fetch(demand=(Request(client.num_tickets, 1, 0),)))
        stranger = zmq.Context().socket(zmq.DEALER)
        stranger.connect(client.welcome.endpoint)
        for _ in range(300):
            garbage = bytearray(good)
            garbage[dice.randrange(len(garbage))] ^= dice.randrange(1, 256)
            client.bus._socket.send(bytes(garbage) if dice.random() < 0.5 else dice.randbytes(50))
            stranger.send_multipart([dice.randbytes(20)] * dice.randint(1, 3))
        for _ in range(30):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as visitor:
                visitor.connect(loader.endpoint)
                visitor.send(dice.randbytes(dice.randint(1, 6000)))
        until(lambda: client.stats()["bus_ignored"] >= 300)
        stranger.context.destroy(0)
        with loader.client(2) as other:
            (ticket,) = other.demand(4)
            assert other.blob(ticket) == expected_blob(manifest, 4)
    assert loader.child.poll() is None


def test_only_the_owner_may_shut_the_loader_down(loader: LoaderProcess) -> None:
    lessee = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from support.loader_process import WireClient
from protocol.messages import Fault, Shutdown
client = WireClient({loader.endpoint!r}, 1)
client.send(Shutdown())
print(client.expect(Fault).text)
client.close()
"""
    said = subprocess.run(
        [sys.executable, "-c", lessee], capture_output=True, text=True, timeout=30, check=True
    )
    assert f"only process {os.getpid()}" in said.stdout
    assert loader.child.poll() is None
    client = loader.client(1)
    client.send(Shutdown())
    assert client.expect(Stopped).reason == "its owner asked for it"
    assert loader.child.wait(10) == 0
    client.close(goodbye=False)


# --- clients that die --------------------------------------------------------------------------


def test_leases_of_a_killed_client_come_back(loader: LoaderProcess) -> None:
    with loader.client(2) as watcher, start_lessee(loader.endpoint, 6, [0, 1, 2, 3, 4, 5]) as lessee:
        lessee.wait_ready()
        assert watcher.stats()["frames_leased"] == 6
        lessee.send_signal(signal.SIGKILL)
        until(lambda: watcher.stats()["frames_leased"] == 0)
        stats = watcher.stats()
        assert (stats["clients"], stats["frames_sealed"]) == (1, 6)
        with loader.client(6):
            pass


def test_a_stopped_client_keeps_its_leases(loader: LoaderProcess) -> None:
    with loader.client(2) as watcher, start_lessee(loader.endpoint, 6, [0, 1, 2, 3, 4, 5]) as lessee:
        words = lessee.wait_ready()["words"]
        lessee.send_signal(signal.SIGSTOP)
        for key in [6, 7, 8, 9, 10] * 3:
            (ticket,) = watcher.demand(key)
            frame = watcher.wait(ticket)
            assert frame not in [split_completion(word)[2] for word in words]
            watcher.send(Release((ticket,)))
        stats = watcher.stats()
        assert (stats["clients"], stats["frames_leased"]) == (2, 6)
        lessee.send_signal(signal.SIGCONT)


def test_a_client_that_says_goodbye_leaves_nothing(loader: LoaderProcess) -> None:
    with loader.client(2) as watcher:
        for _ in range(20):
            with loader.client(6) as client:
                client.demand(0, 1, 2)
                client.prefetch(3, 4, 5)
        until(lambda: watcher.stats()["clients"] == 1)
        assert watcher.stats()["frames_leased"] == 0
    fds = Path(f"/proc/{loader.child.pid}/fd")
    count = len(list(fds.iterdir()))
    for _ in range(20):
        loader.client(6).close()
    until(lambda: len(list(fds.iterdir())) <= count)


# --- the loader dies ---------------------------------------------------------------------------


def test_a_killed_loaders_successor_keeps_the_leases(loader: LoaderProcess, manifest: Manifest) -> None:
    client = loader.client(4)
    other = loader.client(4)
    held = client.demand(1, 2, 3)
    for ticket in held:
        client.wait(ticket)
    words = [client.word(ticket) for ticket in held]
    (theirs,) = other.demand(2)
    other.wait(theirs)
    loader.child.send_signal(signal.SIGKILL)
    loader.child.close()
    with pytest.raises(LoaderLostError):
        loader.client(1)
    loader.start()
    with WireClient(loader.endpoint, 4, resume=client.number, held=tuple(held[:2])) as again:
        assert again.welcome.epoch == again.ready.epoch == 2
        assert again.number == client.number
        assert [again.word(ticket) for ticket in held] == words
        stats = again.stats()
        assert (stats["frames_leased"], stats["frames_sealed"], stats["client_tickets"]) == (2, 3, 2)
        for key, word in zip((1, 2), words, strict=False):
            frame = split_completion(word)[2]
            assert again.arena.frames[frame].tobytes() == expected_blob(manifest, key)
        again._next = held[-1] + 1
        (hit,) = again.demand(3)
        assert again.blob(hit) == expected_blob(manifest, 3)
        assert again.stats()["reads"] == 0
    client.close(goodbye=False)
    other.close(goodbye=False)


def test_unfinished_tickets_are_asked_again_of_the_successor(
    slow_loader: LoaderProcess, manifest: Manifest
) -> None:
    client = slow_loader.client(4)
    tickets = client.demand(1, 2, 3)
    slow_loader.child.send_signal(signal.SIGKILL)
    slow_loader.child.close()
    slow_loader.start()
    ended = [ticket for ticket in tickets if client.word(ticket)]
    with WireClient(slow_loader.endpoint, 4, resume=client.number, held=tuple(ended)) as again:
        rest = [(t, k) for t, k in zip(tickets, (1, 2, 3), strict=True) if t not in ended]
        again.send(Fetch(demand=tuple(Request(ticket, key, 0) for ticket, key in rest)))
        for ticket, key in rest:
            assert again.blob(ticket) == expected_blob(manifest, key)
    client.close(goodbye=False)


def test_the_successor_frees_what_a_client_that_died_meanwhile_held(loader: LoaderProcess) -> None:
    with start_lessee(loader.endpoint, 8, [0, 1, 2]) as lessee:
        lessee.wait_ready()
        loader.child.send_signal(signal.SIGKILL)
        loader.child.close()
    loader.start()
    with loader.client(8) as client:
        stats = client.stats()
        assert (stats["epoch"], stats["clients"], stats["frames_leased"], stats["frames_sealed"]) == (
            2,
            1,
            0,
            3,
        )


def test_the_successor_keeps_what_a_living_client_holds_until_it_dies(loader: LoaderProcess) -> None:
    with start_lessee(loader.endpoint, 6, [0, 1, 2]) as lessee:
        lessee.wait_ready()
        loader.child.send_signal(signal.SIGKILL)
        loader.child.close()
        loader.start()
        with loader.client(2) as client:
            assert client.stats()["frames_leased"] == 3
            with pytest.raises(RefusedError, match="frames asked"):
                loader.client(1)
            lessee.send_signal(signal.SIGKILL)
            until(lambda: client.stats()["frames_leased"] == 0)
            loader.client(6).close()


def test_a_client_may_come_back_to_the_same_loader(loader: LoaderProcess) -> None:
    with loader.client(4) as client:
        held = client.demand(1, 2)
        for ticket in held:
            client.wait(ticket)
        with WireClient(loader.endpoint, 4, resume=client.number, held=tuple(held)) as again:
            assert again.number == client.number
            assert again.stats()["frames_leased"] == 2
            client.send(Snapshot())
            assert client.bus.receive(0.1) is None


def test_a_hung_loader_is_seen_in_the_turn_counter(loader: LoaderProcess) -> None:
    turns = loader.turns
    until(lambda: loader.turns > turns + 3, timeout_s=2)
    loader.child.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    turns = loader.turns
    time.sleep(0.3)
    assert loader.turns == turns
    loader.child.send_signal(signal.SIGCONT)
    until(lambda: loader.turns > turns)


def test_sigterm_drains_and_leaves_no_file(slow_loader: LoaderProcess) -> None:
    client = slow_loader.client(4)
    first, second = client.demand(0, 1)
    until(lambda: client.stats()["queue_depth"] == 1)
    slow_loader.child.send_signal(signal.SIGTERM)
    assert client.expect(Stopped).reason == "SIGTERM"
    assert client.wait(first) is not None
    assert client.wait(second) is None
    assert slow_loader.child.wait(10) == 0
    assert not slow_loader.folder.exists()
    client.close(goodbye=False)


def test_a_loader_dies_with_its_parent(store: Path, tmp_path: Path) -> None:
    parent = f"""
import sys, time; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from support.loader_process import LoaderProcess
loader = LoaderProcess(Path({str(store)!r}), 4)
print(loader.child.pid, loader.folder, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        pid, folder = process.stdout.readline().split()
        assert Path(folder, "door").exists()
        process.kill()
    until(lambda: not Path("/proc", pid, "exe").exists() and not Path(folder).exists())


# --- the store breaks --------------------------------------------------------------------------


def test_a_corrupt_expert_is_dropped_with_a_fault_and_the_rest_is_served(tmp_path: Path) -> None:
    manifest = make_store(tmp_path, NUM_LAYERS, NUM_EXPERTS, top_k=2, stride_kib=64)
    corrupt_blob(tmp_path, manifest, 10)
    with LoaderProcess(tmp_path, num_frames=4) as loader, loader.client(4) as client:
        bad, good = client.demand(10, 11)
        fault = client.expect(Fault)
        assert (fault.kind, fault.tickets) == ("store", (bad,))
        assert "expert 2 of layer 1" in fault.text and manifest.shards[1].file in fault.text
        assert client.wait(bad) is None
        assert client.blob(good) == expected_blob(manifest, 11)
        stats = client.stats()
        assert (stats["checksum_failures"], stats["reads"], stats["client_tickets"]) == (2, 1, 1)
        assert (stats["frames_leased"], stats["frames_sealed"]) == (1, 1)


def test_a_corrupt_expert_passes_only_when_verification_is_switched_off(tmp_path: Path) -> None:
    manifest = make_store(tmp_path, 1, 2, top_k=1, stride_kib=4)
    corrupt_blob(tmp_path, manifest, 1)
    with LoaderProcess(tmp_path, num_frames=2, extra=["--no-verify"]) as loader, loader.client(2) as client:
        (ticket,) = client.demand(1)
        assert client.blob(ticket) != expected_blob(manifest, 1)


def test_a_store_truncated_while_it_is_served_drops_what_is_gone(tmp_path: Path) -> None:
    manifest = make_store(tmp_path, NUM_LAYERS, NUM_EXPERTS, top_k=2, stride_kib=64)
    with LoaderProcess(tmp_path, num_frames=4) as loader, loader.client(4) as client:
        os.truncate(tmp_path / manifest.shards[1].file, manifest.shards[1].data_offset + 64 * 1024)
        good, bad = client.demand(8, 9)
        assert "truncated" in client.expect(Fault).text
        assert client.wait(bad) is None
        assert client.blob(good) == expected_blob(manifest, 8)


def start_expecting_an_error(store: Path, arena_fd: int, *extra: str) -> str:
    folder = create_folder()
    argv = [sys.executable, "-P", "-m", "loader", "serve", "--store", str(store)]
    argv += ["--arena-fd", str(arena_fd), "--folder", str(folder), *extra]
    try:
        with Child.spawn(argv, name="the loader", pass_fds=[arena_fd]) as child:
            with pytest.raises(SidestageError) as error:
                child.wait_ready()
            return str(error.value)
    finally:
        remove_folder(folder)


def test_a_loader_that_cannot_start_says_why_in_one_sentence(
    store: Path, manifest: Manifest, tmp_path: Path
) -> None:
    stride = manifest.layout.stride
    fd = create_arena_fd(ArenaGeometry.for_frames(2, stride))
    odd = create_arena_fd(ArenaGeometry.for_frames(2, stride + 4096))
    try:
        assert "is not a store" in start_expecting_an_error(tmp_path, fd)
        assert "start a new arena" in start_expecting_an_error(store, odd)
        assert "reader threads" in start_expecting_an_error(store, fd, "--threads", "0")
        broken = make_store(tmp_path / "broken", 1, 2, 1, stride_kib=64)
        (tmp_path / "broken" / broken.shards[0].file).write_bytes(b"")
        assert "truncated or foreign" in start_expecting_an_error(tmp_path / "broken", fd)
    finally:
        os.close(fd)
        os.close(odd)


def test_an_arena_of_another_store_is_refused_at_the_start(loader: LoaderProcess, tmp_path: Path) -> None:
    loader.client(1).close()
    make_store(tmp_path, NUM_LAYERS, NUM_EXPERTS, top_k=2, stride_kib=64, seed=1)
    loader.child.close()
    assert "another store" in start_expecting_an_error(tmp_path, loader.arena_fd)


# --- the process -------------------------------------------------------------------------------


def test_the_service_imports_neither_torch_nor_transformers_nor_hqq() -> None:
    code = "import sys, loader.__main__, loader.service; print(sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "transformers", "hqq", "safetensors"):
        assert f"'{heavy}'" not in modules
    assert "'zmq'" in modules


def test_the_running_loader_has_mapped_no_torch_library(loader: LoaderProcess) -> None:
    assert "torch" not in Path(f"/proc/{loader.child.pid}/maps").read_text()


def test_a_timeline_has_a_span_and_an_arrow_for_every_read(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "loader.json"
    with LoaderProcess(store, 4, extra=["--timeline", str(file)]) as loader:
        with loader.client(4) as client:
            tickets = client.demand(1, 2, 3)
            for ticket in tickets:
                client.wait(ticket)
        loader.child.stop()
    events = json.loads(file.read_text())
    spans = [event for event in events if event["ph"] == "X"]
    arrows = [event for event in events if event["ph"] == "t"]
    assert {span["args"]["key"] for span in spans} == {1, 2, 3}
    assert {arrow["id"] for arrow in arrows} == {client.number << 24 | ticket for ticket in tickets}
    now_us = time.monotonic_ns() / 1000
    assert all(0 < now_us - span["ts"] < 60e6 for span in spans)


def test_goodbye_is_obeyed_before_hello(loader: LoaderProcess) -> None:
    with loader.client(2) as watcher:
        client = loader.client(6)
        client.send(Goodbye())
        until(lambda: watcher.stats()["clients"] == 1)
        client.close(goodbye=False)


def test_ready_names_the_epoch(loader: LoaderProcess) -> None:
    with loader.client(1) as client:
        assert client.ready == Ready(1)
