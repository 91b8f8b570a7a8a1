"""The life of a server: it loads, its loader is killed, and Ctrl-C lets the answer under way end.

One server lives this life once; the tests look at what was seen of it.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.serving import RawStream, Server, serving

#: Few slots behind a slow link: the loader is needed to the end, and there is time to interfere.
SLOW = ("--arrangement", "emulated", "--slots", "8", "--link", "4MB/s")
TOKENS = 16


@dataclass(slots=True)
class Life:
    """What was seen."""

    health_at_first: int = 0
    asked_at_first: int = 0
    undisturbed: str = ""
    with_a_kill: str = ""
    health_around_the_kill: list[int] = field(default_factory=list)
    restarts: float = 0.0
    text_while_draining: str = ""
    asked_while_draining: int = 0
    waited_while_draining: int = 0
    exit_code: int | None = None
    log: str = ""


@pytest.fixture(scope="module")
def life(store_4bit: Path, tmp_path_factory: pytest.TempPathFactory) -> Life:
    """A whole life, told."""
    seen = Life()
    with serving(tmp_path_factory.mktemp("life"), store_4bit, *SLOW) as server:
        seen.health_at_first = server.health()
        seen.asked_at_first = server.post("/v1/completions", prompt="a").status_code
        server.await_ready()
        seen.undisturbed = server.text(max_tokens=TOKENS)
        _kill_the_loader(server, seen)
        _stop(server, seen)
        seen.exit_code = server.process.wait(60)
        seen.log = server.log
    return seen


def _kill_the_loader(server: Server, seen: Life) -> None:
    """While somebody is answered."""
    stream = RawStream(server, max_tokens=TOKENS)
    events = stream.events()
    seen.with_a_kill = next(events)["choices"][0]["text"]
    with _watched_health(server, seen.health_around_the_kill):
        server.child("loader").kill()
        seen.with_a_kill += "".join(event["choices"][0]["text"] for event in events)
    seen.restarts = server.figures()["sidestage_loader_restarts_total"]


@contextmanager
def _watched_health(server: Server, statuses: list[int]) -> Iterator[None]:
    """Note each change of the health's status."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            if (status := server.health()) not in statuses[-1:]:
                statuses.append(status)

    statuses.append(server.health())
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
        _await(lambda: statuses[-1] == 200 and len(statuses) > 1)
    finally:
        done.set()
        watcher.join()


def _stop(server: Server, seen: Life) -> None:
    """Ctrl-C while one is answered and another waits."""
    stream = RawStream(server, max_tokens=TOKENS)
    events = stream.events()
    seen.text_while_draining = next(events)["choices"][0]["text"]
    waiting = threading.Thread(target=lambda: seen.__setattr__("waited_while_draining", _asked(server)))
    waiting.start()
    server.await_figure("sidestage_requests_waiting", 1)
    server.process.send_signal(signal.SIGINT)
    waiting.join()
    seen.asked_while_draining = _asked(server)
    seen.text_while_draining += "".join(event["choices"][0]["text"] for event in events)


def _asked(server: Server) -> int:
    return server.post("/v1/completions", prompt="a").status_code


def _await(is_so: object, timeout_s: float = 30.0) -> None:
    assert callable(is_so)
    until = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_health_and_answers_are_503_while_the_model_loads(life: Life) -> None:
    assert (life.health_at_first, life.asked_at_first) == (503, 503)


def test_health_is_503_while_a_dead_loader_is_replaced_and_then_200(life: Life) -> None:
    assert life.health_around_the_kill == [200, 503, 200]
    assert life.restarts == 1


def test_an_answer_is_the_same_when_its_loader_is_killed(life: Life) -> None:
    assert life.with_a_kill == life.undisturbed


def test_ctrl_c_lets_the_answer_under_way_end(life: Life) -> None:
    assert life.text_while_draining == life.undisturbed
    assert life.exit_code == 0
    assert "Traceback" not in life.log


def test_ctrl_c_refuses_who_waits_and_who_comes(life: Life) -> None:
    assert (life.waited_while_draining, life.asked_while_draining) == (503, 503)


def test_the_last_line_tells_what_was_served(life: Life) -> None:
    assert "3 answers, 48 tok, experts " in life.log.splitlines()[-1]
