"""What `sidestage serve` refuses before anything is started, and how it says so."""

import importlib.util
import signal
import socket
from pathlib import Path

import pytest
from support.cli import assert_refused, call
from support.serving import serving

Capture = pytest.CaptureFixture[str]


def test_a_busy_port_is_named(capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        answer = call(capsys, "serve", "--port", str(port))
    assert_refused(answer, f"--port {port} is in use", "another port", code=2)


def test_a_port_that_cannot_be_is_refused(capsys: Capture) -> None:
    assert_refused(call(capsys, "serve", "--port", "70000"), "--port is 70000", "65535", code=2)
    assert call(capsys, "serve", "--port", "http").code == 2


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7", ""])
def test_a_host_that_is_not_this_machine_is_refused(capsys: Capture, host: str) -> None:
    assert_refused(call(capsys, "serve", "--host", host, "--port", "0"), "--host", "127.0.0.1", code=2)


def test_settings_that_cannot_be_are_refused(capsys: Capture) -> None:
    assert_refused(call(capsys, "serve", "--queue", "-1"), "--queue is -1")
    assert_refused(call(capsys, "serve", "--batch", "0"), "--batch is 0")
    assert_refused(call(capsys, "serve", "--api-key", ""), "--api-key")
    assert_refused(call(capsys, "serve", "--slots", "0"), "--slots is 0")


def test_a_model_that_is_not_there_ends_the_server_with_a_sentence(capsys: Capture, tmp_path: Path) -> None:
    assert_refused(call(capsys, "serve", tmp_path, "--port", "0"), "config.json")


def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else found(name, *rest)
    )
    assert_refused(call(capsys, "serve"), "uvicorn", "pip install 'sidestage[serve]'")


def test_ctrl_c_ends_a_server_that_still_loads_at_once(store_4bit: Path, tmp_path: Path) -> None:
    with serving(tmp_path, store_4bit) as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 130
        assert "Traceback" not in server.log
