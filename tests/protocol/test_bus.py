"""The bus: typed messages both ways, strangers unheard, nothing dropped silently."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from protocol.channel import MAX_BACKLOG, QUEUE_LENGTH, BusClient, BusServer, new_identity
from protocol.codec import encode
from protocol.errors import LoaderLostError, ProtocolError
from protocol.folder import BUS_NAME
from protocol.messages import Command, Fault, Fetch, Hello, Ready, Release, Request, Snapshot, Stats


@pytest.fixture
def server(socket_folder: Path) -> Iterator[BusServer]:
    with BusServer(socket_folder / BUS_NAME) as server:
        yield server


@pytest.fixture
def client(server: BusServer) -> Iterator[BusClient]:
    identity = new_identity()
    server.admit(identity)
    with BusClient(server.endpoint, identity, 5) as client:
        yield client


def receive(server: BusServer, count: int = 1) -> list[tuple[bytes, Command]]:
    until = time.monotonic() + 5
    commands: list[tuple[bytes, Command]] = []
    while len(commands) < count and time.monotonic() < until:
        server.socket.poll(50)
        commands += server.receive()
    return commands


def raw_peer(server: BusServer, identity: bytes) -> zmq.Socket[bytes]:
    peer = zmq.Context().socket(zmq.DEALER)
    peer.setsockopt(zmq.IDENTITY, identity)
    peer.connect(server.endpoint)
    return peer


def test_commands_arrive_in_order_with_their_senders_identity(server: BusServer, client: BusClient) -> None:
    sent = [Hello(0, ()), Fetch(demand=(Request(64, 1, 2),)), Release((64,)), Snapshot()]
    for command in sent:
        client.send(command)
    received = receive(server, len(sent))
    assert [command for _, command in received] == sent
    assert len({identity for identity, _ in received}) == 1


def test_events_come_back(server: BusServer, client: BusClient) -> None:
    client.send(Snapshot())
    ((identity, _),) = receive(server)
    assert server.send(identity, Ready(7))
    assert client.receive(5) == Ready(7)
    assert client.receive(0) is None
    assert client.receive(0.01) is None


def test_identities_differ_and_do_not_start_with_zero() -> None:
    identities = {new_identity() for _ in range(1000)}
    assert len(identities) == 1000
    assert all(len(identity) == 16 and identity[0] for identity in identities)


def test_strangers_are_not_heard(server: BusServer, client: BusClient) -> None:
    stranger = raw_peer(server, b"\x01stranger")
    for data in (encode(Hello(0, ())), b"garbage"):
        stranger.send(data)
    client.send(Snapshot())
    assert [command for _, command in receive(server)] == [Snapshot()]
    until = time.monotonic() + 5
    while server.num_ignored < 2 and time.monotonic() < until:
        server.socket.poll(20)
        assert server.receive() == []
    assert server.num_ignored == 2
    stranger.context.destroy(0)


@pytest.mark.parametrize(
    "parts", [[b"garbage"], [b""], [encode(Ready(1))], [encode(Snapshot()), b"more"], [b"\x91" * 5000]]
)
def test_garbage_is_answered_with_a_fault_and_the_client_stays(server: BusServer, parts: list[bytes]) -> None:
    identity = new_identity()
    server.admit(identity)
    peer = raw_peer(server, identity)
    peer.send_multipart(parts)
    peer.send(encode(Snapshot()))
    assert receive(server) == [(identity, Snapshot())]
    assert server.num_garbled == 1
    assert peer.poll(5000)
    assert b"protocol" in peer.recv()
    peer.context.destroy(0)


def test_an_event_for_nobody_is_lost_and_counted(server: BusServer) -> None:
    assert not server.send(b"\x01nobody", Ready(1))
    server.admit(b"\x01absent")
    assert not server.send(b"\x01absent", Ready(1))
    assert server.num_lost == 2


def test_a_client_that_does_not_read_has_its_events_kept(server: BusServer, client: BusClient) -> None:
    client.send(Snapshot())
    ((identity, _),) = receive(server)
    text = "x" * 2000
    count = 2 * QUEUE_LENGTH + 3000
    for number in range(count):
        assert server.send(identity, Fault("store", text, (number,)))
    until = time.monotonic() + 20
    got = 0
    while got < count and time.monotonic() < until:
        server.send_backlogs()
        event = client.receive(0.01)
        if event is not None:
            assert event == Fault("store", text, (got,))
            got += 1
    assert got == count
    assert server.num_lost == 0


def test_what_is_kept_for_a_client_that_never_reads_is_bounded(server: BusServer, client: BusClient) -> None:
    client.send(Snapshot())
    ((identity, _),) = receive(server)
    text = "x" * 4000
    sent = sum(
        server.send(identity, Fault("store", text, ())) for _ in range(MAX_BACKLOG + 20 * QUEUE_LENGTH)
    )
    assert sent < MAX_BACKLOG + 20 * QUEUE_LENGTH
    assert server.num_lost > 0


def test_a_loader_that_takes_nothing_is_an_error_that_names_the_setting(server: BusServer) -> None:
    identity = new_identity()
    with BusClient(server.endpoint, identity, 0.2) as client:
        big = Stats(0, tuple("x" * 1000 for _ in range(100)), tuple(range(100)))
        with pytest.raises(LoaderLostError, match="SIDESTAGE_TIMEOUT"):
            for _ in range(100 * QUEUE_LENGTH):
                client.send(big)  # type: ignore[arg-type]
        client.close(linger_s=0)


def test_an_event_where_a_command_belongs_is_refused_by_the_client(
    server: BusServer, client: BusClient
) -> None:
    client.send(Snapshot())
    ((identity, _),) = receive(server)
    server.send(identity, Snapshot())  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match="does not belong"):
        client.receive(5)


def test_a_network_endpoint_is_refused() -> None:
    with pytest.raises(ProtocolError, match="only ipc"):
        BusClient("tcp://127.0.0.1:5555", new_identity(), 1)


def test_closing_removes_the_socket_and_is_idempotent(socket_folder: Path) -> None:
    server = BusServer(socket_folder / BUS_NAME)
    assert (socket_folder / BUS_NAME).exists()
    server.close(0.1)
    server.close(0.1)
    assert not (socket_folder / BUS_NAME).exists()


def test_a_client_that_was_never_closed_does_not_keep_its_process_from_ending(tmp_path: Path) -> None:
    code = f"""
from protocol.channel import BusClient
from protocol.messages import Snapshot
client = BusClient("ipc://{tmp_path}/nobody", b"\\x01" * 16, 5)
client.send(Snapshot())
"""
    subprocess.run([sys.executable, "-c", code], timeout=20, check=True)
