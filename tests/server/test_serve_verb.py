"""What `sidestage serve` refuses before anything is started, and how it says so."""

import importlib.util
import signal
import socket
from pathlib import Path

import pytest
from support.cli import Answer, call
from support.serving import serving

Capture = pytest.CaptureFixture[str]


def assert_refused(answer: Answer, code: int, *words: str) -> None:
    assert answer.code == code, answer
    assert answer.out == ""
    last = answer.err.strip().splitlines()[-1]
    assert last.startswith("sidestage: ")
    assert "Traceback" not in answer.err
    for word in words:
        assert word in last


def test_a_busy_port_is_named(capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert_refused(
            call(capsys, "serve", "--port", str(port)), 2, f"--port {port} is in use", "another port"
        )


def test_a_port_that_cannot_be_is_refused(capsys: Capture) -> None:
    assert_refused(call(capsys, "serve", "--port", "70000"), 2, "--port is 70000", "65535")
    assert call(capsys, "serve", "--port", "http").code == 2


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7", ""])
def test_a_host_that_is_not_this_machine_is_refused(capsys: Capture, host: str) -> None:
    assert_refused(call(capsys, "serve", "--host", host, "--port", "0"), 2, "--host", "127.0.0.1")


def test_settings_that_cannot_be_are_refused(capsys: Capture) -> None:
    assert_refused(call(capsys, "serve", "--queue", "-1"), 1, "--queue is -1")
    assert_refused(call(capsys, "serve", "--batch", "0"), 1, "--batch is 0")
    assert_refused(call(capsys, "serve", "--api-key", ""), 1, "--api-key")
    assert_refused(call(capsys, "serve", "--slots", "0"), 1, "--slots is 0")


def test_a_model_that_is_not_there_ends_the_server_with_a_sentence(capsys: Capture, tmp_path: Path) -> None:
    assert_refused(call(capsys, "serve", tmp_path, "--port", "0"), 1, "config.json")


def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else found(name, *rest)
    )
    assert_refused(call(capsys, "serve"), 1, "uvicorn", "pip install 'sidestage[serve]'")


def test_ctrl_c_ends_a_server_that_still_loads_at_once(store_4bit: Path, tmp_path: Path) -> None:
    with serving(tmp_path, store_4bit) as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 130
        assert "Traceback" not in server.log
