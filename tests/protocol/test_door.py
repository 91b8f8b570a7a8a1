"""The door: one exchange, fds included, and nobody holds it up."""

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import protocol.door
from protocol.codec import encode
from protocol.door import MAX_VISITORS, Admission, DoorServer, Visitor, enter
from protocol.errors import LoaderLostError, ProtocolError, RefusedError
from protocol.messages import PROTOCOL_VERSION, Knock, Ready, Welcome

KNOCK = Knock(PROTOCOL_VERSION, 4, "", "word", -1)
Answer = Callable[[Visitor, Knock], None]


def welcome(version: int = PROTOCOL_VERSION) -> Welcome:
    return Welcome(version, 0, 1, b"\x01" * 16, "ipc:///b", "ab", "/s", (1, 4096, 1, 64))


class Doorkeeper:
    """Answers knocks in a thread until it is told to stop."""

    def __init__(self, server: DoorServer, answer: Answer) -> None:
        self._server = server
        self._answer = answer
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._is_done.wait(0.001):
            for visitor, knock in self._server.knocks():
                self._answer(visitor, knock)
            self._server.send_away_the_silent()

    def stop(self) -> None:
        self._is_done.set()
        self._thread.join()


def let_in(visitor: Visitor, knock: Knock) -> None:
    arena, eventfd = os.memfd_create("arena"), os.eventfd(0)
    os.write(arena, b"bytes of the arena")
    assert visitor.welcome(welcome(), arena, eventfd)
    os.eventfd_write(eventfd, knock.quota)
    os.close(arena)
    os.close(eventfd)


@pytest.fixture
def keep(socket_folder: Path) -> Iterator[Callable[[Answer], DoorServer]]:
    keepers: list[Doorkeeper] = []
    server = DoorServer(socket_folder)

    def start(answer: Answer) -> DoorServer:
        keepers.append(Doorkeeper(server, answer))
        return server

    yield start
    for keeper in keepers:
        keeper.stop()
    server.close()


def close(admission: Admission) -> None:
    os.close(admission.arena_fd)
    os.close(admission.eventfd)


def connect(server: DoorServer) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(5)
    connection.connect(str(server.path))
    return connection


def test_the_fds_come_with_the_welcome_and_do_not_reach_children(
    keep: Callable[[Answer], DoorServer],
) -> None:
    server = keep(let_in)
    admission = enter(server.path, KNOCK, 5)
    assert admission.welcome == welcome()
    assert admission.loader_pid == os.getpid()
    assert os.pread(admission.arena_fd, 99, 0) == b"bytes of the arena"
    assert not os.get_inheritable(admission.arena_fd) and not os.get_inheritable(admission.eventfd)
    close(admission)


def test_a_refusal_is_the_loaders_own_sentence(keep: Callable[[Answer], DoorServer]) -> None:
    server = keep(lambda visitor, knock: visitor.refuse(f"{knock.quota} frames are too many"))
    with pytest.raises(RefusedError, match="4 frames are too many"):
        enter(server.path, KNOCK, 5)


def test_a_loader_of_another_version_is_refused_by_the_client(keep: Callable[[Answer], DoorServer]) -> None:
    def answer(visitor: Visitor, knock: Knock) -> None:
        visitor.welcome(welcome(version=99), 0, 1)

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(RefusedError, match="protocol version 99"):
        enter(keep(answer).path, KNOCK, 5)
    deadline = time.monotonic() + 5  # the door's own end closes in another thread
    while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_nobody_at_the_door_is_an_error_at_once(socket_folder: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(LoaderLostError, match="no loader answers"):
        enter(socket_folder / "door", KNOCK, 5)
    assert time.monotonic() - begin < 1


def test_a_loader_that_never_answers_is_given_up_naming_the_setting(socket_folder: Path) -> None:
    with DoorServer(socket_folder) as server, pytest.raises(LoaderLostError, match="SIDESTAGE_TIMEOUT"):
        enter(server.path, KNOCK, 0.2)


def test_a_full_queue_at_the_door_is_waited_for_no_longer_than_the_timeout(socket_folder: Path) -> None:
    with DoorServer(socket_folder) as server:
        crowd = []
        for _ in range(MAX_VISITORS + 1):
            visitor = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            visitor.setblocking(False)
            visitor.connect(str(server.path))
            crowd.append(visitor)
        with pytest.raises(LoaderLostError, match="SIDESTAGE_TIMEOUT"):
            enter(server.path, KNOCK, 0.2)
        for visitor in crowd:
            visitor.close()


def test_an_answer_that_is_no_answer_is_a_protocol_error(keep: Callable[[Answer], DoorServer]) -> None:
    def answer(visitor: Visitor, knock: Knock) -> None:
        visitor.connection.send(encode(Ready(1)))
        visitor.connection.close()

    with pytest.raises(ProtocolError, match="answered a Knock with Ready"):
        enter(keep(answer).path, KNOCK, 5)


def test_a_welcome_without_fds_is_a_protocol_error(keep: Callable[[Answer], DoorServer]) -> None:
    def answer(visitor: Visitor, knock: Knock) -> None:
        visitor.connection.send(encode(welcome()))
        visitor.connection.close()

    with pytest.raises(ProtocolError):
        enter(keep(answer).path, KNOCK, 5)


def test_garbage_is_refused_and_the_next_client_comes_in(keep: Callable[[Answer], DoorServer]) -> None:
    server = keep(let_in)
    dice = random.Random(0)
    for _ in range(50):
        with connect(server) as visitor:
            visitor.send(dice.randbytes(dice.randint(1, 8000)))
            visitor.recv(4096)
    with connect(server) as visitor:
        visitor.send(encode(Ready(1)))
        assert b"expected a Knock" in visitor.recv(4096)
    close(enter(server.path, KNOCK, 5))


def test_fds_pressed_on_the_door_are_not_taken(keep: Callable[[Answer], DoorServer]) -> None:
    server = keep(let_in)
    with connect(server) as visitor, open("/dev/null") as null:
        before = len(os.listdir("/proc/self/fd"))
        socket.send_fds(visitor, [b"garbage"], [null.fileno()] * 10)
        visitor.recv(4096)
        time.sleep(0.05)
        assert len(os.listdir("/proc/self/fd")) <= before


def test_silent_visitors_are_sent_away(
    keep: Callable[[Answer], DoorServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol.door, "PATIENCE_S", 0.05)
    server = keep(let_in)
    with connect(server) as visitor:
        assert visitor.recv(1) == b""
    assert server.num_refused == 1


def test_a_crowd_of_silent_visitors_does_not_keep_a_client_out(keep: Callable[[Answer], DoorServer]) -> None:
    server = keep(let_in)
    crowd = [connect(server) for _ in range(MAX_VISITORS)]
    for _ in range(MAX_VISITORS):
        close(enter(server.path, KNOCK, 5))
    for visitor in crowd:
        visitor.close()


def test_a_visitor_that_leaves_before_the_answer_gets_nothing(keep: Callable[[Answer], DoorServer]) -> None:
    answers: list[bool] = []
    gone = threading.Event()

    def answer(visitor: Visitor, knock: Knock) -> None:
        gone.wait(5)
        answers.append(visitor.welcome(welcome(), 0, 1))

    server = keep(answer)
    with connect(server) as visitor:
        visitor.send(encode(KNOCK))
        time.sleep(0.05)
    gone.set()
    while not answers:
        time.sleep(0.001)
    assert answers == [False]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_client_of_another_user_is_refused(keep: Callable[[Answer], DoorServer]) -> None:
    server = keep(let_in)
    path = server.path
    for part in (
        path.parent,
        path.parent.parent,
        path.parent.parent.parent,
        path.parent.parent.parent.parent,
    ):
        part.chmod(0o711)
    path.chmod(0o777)
    code = """
import os, sys, socket
os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1])
s.send(bytes.fromhex(sys.argv[2])); sys.stdout.buffer.write(s.recv(4096))
"""
    argv = [sys.executable, "-c", code, str(path), encode(KNOCK).hex()]
    answer = subprocess.run(argv, capture_output=True, timeout=20, check=True).stdout
    assert b"serves user 0, not user 65534" in answer


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:5555", "tcp://0.0.0.0:*", "ipc:///tmp/bus"])
def test_a_network_address_is_no_door(endpoint: str) -> None:
    with pytest.raises(ValueError, match=f"{endpoint.partition(':')[0]} is refused, .* own machine"):
        enter(endpoint, KNOCK, 1)


def test_closing_the_door_removes_its_socket(socket_folder: Path) -> None:
    server = DoorServer(socket_folder)
    assert server.path.exists()
    server.close()
    server.close()
    assert not server.path.exists()


def test_a_door_left_by_a_crash_is_opened_again(socket_folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as crashed:
        crashed.bind(str(socket_folder / "door"))
    with DoorServer(socket_folder) as server:
        keeper = Doorkeeper(server, let_in)
        close(enter(server.path, KNOCK, 5))
        keeper.stop()
