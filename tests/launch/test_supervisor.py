"""`sidestage run` with real processes: what it prints, how it ends, and what survives a murder.

Each run costs seconds of imports, so one run serves several tests.
"""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.cli import GREEDY, Answer, call, run, running

from launch.summary import CONTRACT

TOKENS = ("--max-new-tokens", "24")
#: Few slots behind a slow link: long enough for a test to interfere, and the loader is needed to the end.
SLOW = ("--arrangement", "emulated", "--slots", "8", "--link", "1MB/s")


@pytest.fixture(scope="module")
def quiet(store_4bit: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Answer, dict[str, Any]]:
    """A greedy run with `--json -` and a timeline: the answer, and the timeline's content."""
    timeline = tmp_path_factory.mktemp("run") / "trace.json"
    answer = run("run", store_4bit, *GREEDY, *TOKENS, "--slots", "48", "--json", "-", "--timeline", timeline)
    assert answer.code == 0, answer.err
    return answer, json.loads(timeline.read_text())


@pytest.fixture
def greedy(quiet: tuple[Answer, dict[str, Any]]) -> dict[str, Any]:
    """The JSON object of the greedy run."""
    return quiet[0].json


def test_json_on_stdout_is_one_object_with_every_name(quiet: tuple[Answer, dict[str, Any]]) -> None:
    answer, _ = quiet
    assert answer.out.count("\n") == 1
    assert set(CONTRACT) <= set(answer.json)


def test_the_counters_add_up(greedy: dict[str, Any]) -> None:
    assert greedy["lookups"] == greedy["hits"] + greedy["late"] + greedy["misses"] > 0
    assert greedy["new_tokens"] == len(greedy["token_ids"]) <= 24
    assert greedy["prompt_tokens"] > 5
    assert greedy["hit_rate"] == pytest.approx(greedy["hits"] / greedy["lookups"])
    assert greedy["bytes_transferred"] == 0
    assert greedy["bytes_read"] > 0


def test_the_choices_are_reported(greedy: dict[str, Any]) -> None:
    chosen = {
        name: greedy[name] for name in ("arrangement", "policy", "predictor", "lookahead", "slots", "bits")
    }
    assert chosen == {
        "arrangement": "direct",
        "policy": "reuse-distance",
        "predictor": "gate",
        "lookahead": 1,
        "slots": 48,
        "bits": "4",
    }
    assert "CPU" in greedy["arrangement_reason"]


def test_the_compute_process_holds_no_expert(greedy: dict[str, Any], shipped_model: Path) -> None:
    whole = (shipped_model / "model.safetensors").stat().st_size
    assert greedy["compute_parameter_bytes"] < whole - 14_000_000


def test_the_timeline_shows_both_processes_and_arrows_between_them(
    quiet: tuple[Answer, dict[str, Any]],
) -> None:
    events = quiet[1]["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {"compute", "loader"}
    begun, passed, ended = ({e["id"]: e["pid"] for e in events if e["ph"] == phase} for phase in "stf")
    whole = set(begun) & set(passed) & set(ended)
    assert whole
    assert all(begun[arrow] == ended[arrow] != passed[arrow] for arrow in whole)


def test_the_summary_goes_to_stderr(quiet: tuple[Answer, dict[str, Any]]) -> None:
    assert "24 tok, " in quiet[0].err
    assert "48 in slots" in quiet[0].err


def test_a_dead_loader_is_replaced_and_the_same_tokens_come(
    store_4bit: Path, greedy: dict[str, Any], tmp_path: Path
) -> None:
    place = tmp_path / "out.json"
    with running("run", store_4bit, *GREEDY, *TOKENS, *SLOW, "--json", place) as command:
        command.await_text()
        command.child("loader").kill()
        answer = command.end()
    assert answer.code == 0, answer.err
    result = json.loads(place.read_text())
    assert result["token_ids"] == greedy["token_ids"]
    assert result["loader_restarts"] == 1
    assert answer.out == greedy["text"] + "\n"


def test_the_first_ctrl_c_drains_and_the_summary_is_still_told(store_4bit: Path) -> None:
    with running("run", store_4bit, *GREEDY, "--max-new-tokens", "400", *SLOW) as command:
        command.await_text()
        command.send(signal.SIGINT)
        answer = command.end()
    assert answer.code == 130
    assert answer.out.strip()
    assert " tok, " in answer.err
    assert "Traceback" not in answer.err


def test_the_second_ctrl_c_ends_it_without_waiting_for_the_token(store_4bit: Path) -> None:
    crawling = ("--arrangement", "emulated", "--slots", "8", "--link", "300KB/s")
    with running("run", store_4bit, *GREEDY, *crawling) as command:
        command.await_text()
        command.send(signal.SIGINT)
        time.sleep(0.05)
        command.send(signal.SIGINT)
        answer = command.end(timeout_s=20)
    assert answer.code == 130
    assert " tok, " not in answer.err
    assert "Traceback" not in answer.err


def test_ctrl_c_while_everything_starts_ends_it_at_once(store_4bit: Path) -> None:
    with running("run", store_4bit, *GREEDY) as command:
        command.child("launch.generate")
        command.send(signal.SIGINT)
        answer = command.end(timeout_s=30)
    assert answer.code == 130
    assert answer.out == ""


def test_a_killed_supervisor_takes_both_children_along(store_4bit: Path) -> None:
    with running("run", store_4bit, *GREEDY, "--max-new-tokens", "400", *SLOW) as command:
        command.await_text()
        children = [command.child("loader"), command.child("launch.generate")]
        command.send(signal.SIGKILL)
        _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_a_killed_compute_process_is_told_in_a_sentence(store_4bit: Path) -> None:
    with running("run", store_4bit, *GREEDY) as command:
        command.child("launch.generate").kill()
        answer = command.end()
    assert answer.code == 1
    assert "the compute process was killed by SIGKILL" in answer.err


def test_a_run_attaches_to_a_loader_that_stands_alone(
    store_4bit: Path, greedy: dict[str, Any], tmp_path: Path
) -> None:
    endpoint, told = tmp_path / "endpoint", tmp_path / "loader.json"
    with running("loader", store_4bit, "--endpoint", endpoint, "--json", told) as loader:
        assert loader.process.stdout is not None
        assert loader.process.stdout.readline().decode().strip() == str(endpoint)
        facts = json.loads(told.read_text())
        assert facts["endpoint"] == str(endpoint)
        assert facts["pid"] == loader.process.pid
        assert facts["frames"] >= 192
        attached = run("run", *GREEDY, *TOKENS, "--slots", "16", "--connect", endpoint, "--json", "-")
        assert attached.code == 0, attached.err
        assert attached.json["token_ids"] == greedy["token_ids"]
        loader.send(signal.SIGINT)
        assert loader.end(timeout_s=20).code == 0
    assert not os.path.lexists(endpoint)


def test_an_endpoint_left_by_a_crash_is_taken_over(store_4bit: Path, tmp_path: Path) -> None:
    endpoint = tmp_path / "endpoint"
    endpoint.symlink_to(tmp_path / "gone" / "door")
    with running("loader", store_4bit, "--endpoint", endpoint) as loader:
        assert loader.process.stdout is not None
        assert loader.process.stdout.readline().decode().strip() == str(endpoint)
        loader.send(signal.SIGTERM)
        assert loader.end(timeout_s=20).code == 0


def test_a_reader_who_leaves_ends_the_run_without_a_traceback(store_4bit: Path) -> None:
    with running("run", store_4bit, *GREEDY, "--max-new-tokens", "400", *SLOW) as command:
        command.await_text()
        assert command.process.stdout is not None
        command.process.stdout.close()
        command.process.stdout = open(os.devnull, "rb")
        code = command.process.wait(timeout=60)
        assert command.process.stderr is not None
        assert b"Traceback" not in command.process.stderr.read()
    assert code == 0


def test_convert_writes_a_store_that_doctor_finds_whole(
    capsys: pytest.CaptureFixture[str], shipped_model: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    assert call(capsys, "convert", shipped_model, store, "--bits", "8", "--fast").code == 0
    assert "192 experts, 8 bit" in call(capsys, "doctor", "--store", store).out
