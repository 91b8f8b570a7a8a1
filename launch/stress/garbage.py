"""A visitor who talks nonsense: random and damaged messages at the door and on the bus."""

import os
import random
import socket
from pathlib import Path

import zmq

from protocol.codec import encode
from protocol.door import enter
from protocol.messages import PROTOCOL_VERSION, Fetch, Hello, Knock, Release, Request

NUM_MESSAGES = 40
_TIMEOUT_S = 5.0


def talk_nonsense(endpoint: str, rng: random.Random) -> None:
    """Come, talk, and leave without a goodbye. Raises SidestageError or OSError where nobody listens."""
    _at_the_door(endpoint, rng)
    admission = enter(endpoint, Knock(PROTOCOL_VERSION, 1, "", "word", -1), _TIMEOUT_S)
    os.close(admission.arena_fd)
    os.close(admission.eventfd)
    with zmq.Context(io_threads=1) as context, context.socket(zmq.DEALER) as bus:
        bus.setsockopt(zmq.LINGER, 200)
        bus.setsockopt(zmq.IDENTITY, admission.welcome.identity)
        bus.connect(admission.welcome.endpoint)
        bus.send(encode(Hello(admission.welcome.client, ())))
        for _ in range(NUM_MESSAGES):
            bus.send_multipart(_nonsense(rng), zmq.NOBLOCK)
        bus.send(bytes.fromhex("910e"))  # goodbye, so that the row is free for the next


def _at_the_door(endpoint: str, rng: random.Random) -> None:
    if not Path(endpoint).exists():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.settimeout(_TIMEOUT_S)
        door.connect(endpoint)
        door.send(rng.randbytes(rng.randrange(1, 5000)))
        door.recv(4096)


def _nonsense(rng: random.Random) -> list[bytes]:
    """The parts of one message."""
    number = rng.choice((0, 1, 64, 65, 2**24 - 1, -1, 2**63))
    request = Request(number, rng.choice((0, 1, -1, 2**40)), 0)
    command = rng.choice((Fetch(demand=(request, request), cancel=(number,)), Release((number, number))))
    whole = bytearray(encode(command))
    match rng.randrange(4):
        case 0:
            return [rng.randbytes(rng.randrange(200))]
        case 1:
            whole[rng.randrange(len(whole))] = rng.randrange(256)
        case 2:
            return [bytes(whole), bytes(whole)]
    return [bytes(whole)]
