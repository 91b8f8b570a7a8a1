"""`sidestage stress` as users meet it: its report, its exit code, its refusals."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.cli import call, run

from launch.stress.config import FaultKind, StressConfig, parse_faults
from launch.stress.memory import MemoryCurve
from launch.stress.report import Counted, Leaks, Report
from launch.stress.routing import Routing

NAMES = [
    "transfers",
    "bytes",
    "gigabytes_per_second",
    "link_utilisation",
    "overlap_fraction",
    "demand_p50_us",
    "demand_p99_us",
    "faults_injected",
    "recoveries",
    "corrupt",
    "lost",
    "leaked_fds",
    "leaked_processes",
    "leaked_files",
    "max_rss_bytes",
    "longest_recovery_s",
    "memory",
]

Capture = pytest.CaptureFixture[str]


def report(**changes: int) -> Report:
    clean = dict.fromkeys(NAMES, 0)
    return Report(**{**clean, **changes})


def test_the_report_holds_every_name_of_the_contract_and_a_clean_run_ends_with_0(tmp_path: Path) -> None:
    place = tmp_path / "report.json"
    answer = run("stress", "--seconds", "2", "--clients", "1", "--faults", "kill-loader", "--json", place)
    assert answer.code == 0, answer.err
    found = json.loads(place.read_text())
    assert list(found) == NAMES
    assert found["transfers"] > 0 and found["bytes"] == found["transfers"] * 65536
    assert (found["corrupt"], found["lost"], found["leaked_fds"], found["leaked_processes"]) == (0, 0, 0, 0)
    assert found["faults_injected"] >= 1 and found["recoveries"] >= 1
    assert 0 < found["link_utilisation"] <= 1


@pytest.mark.parametrize("name", ["corrupt", "lost", "leaked_fds", "leaked_processes", "leaked_files"])
def test_anything_corrupt_lost_or_leaked_is_not_clean(name: str) -> None:
    assert report().is_clean
    assert not report(**{name: 1}).is_clean


def test_pinned_is_refused_without_a_device(capsys: Capture) -> None:
    answer = call(capsys, "stress", "--arrangement", "pinned")
    assert answer.code == 1
    assert "needs a CUDA device" in answer.err and "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--faults", "earthquake"], "garbage-message"),
        (["--seconds", "0"], "--seconds"),
        (["--clients", "0"], "--clients"),
        (["--clients", "99"], "1 to 32"),
        (["--arrangement", "teleported"], "choose emulated"),
        (["--link", "fast"], "--link"),
        (["--seed", "-1"], "--seed"),
        (["--json", "/no/such/folder/report.json"], "--json"),
    ],
)
def test_a_wrong_setting_is_answered_with_a_sentence(
    capsys: Capture, arguments: list[str], said: str
) -> None:
    answer = call(capsys, "stress", *arguments)
    assert answer.code == 1 and said in answer.err and answer.err.count("\n") == 1


def test_faults_are_named_all_none_or_listed() -> None:
    assert parse_faults("all") == tuple(FaultKind)
    assert parse_faults("none") == ()
    assert parse_faults("slow-disk, kill-loader,slow-disk") == (FaultKind.SLOW_DISK, FaultKind.KILL_LOADER)


def test_a_setting_left_alone_has_its_default() -> None:
    assert StressConfig().arrangement == "emulated"


def test_the_load_follows_from_its_seed() -> None:
    def steps(seed: int) -> list[list[int]]:
        routing = Routing(3, 16, 4, seed, lookahead=2)
        return [routing.next_step() for _ in range(400)]

    assert steps(1) == steps(1) != steps(2)
    for number, keys in enumerate(steps(1)):
        first = number % 3 * 16
        assert len(keys) == 4 and keys == sorted(set(keys))
        assert all(first <= key < first + 16 for key in keys)


def test_what_is_guessed_is_mostly_what_comes() -> None:
    routing = Routing(3, 64, 4, seed=5, lookahead=2)
    right = 0
    for _ in range(500):
        routing.next_step()
        guessed = routing.guess(1)
        right += len(set(guessed) & set(routing._ahead[0]))
    assert 0.7 < right / (500 * 4) < 0.9


def test_a_run_without_a_transfer_has_no_latencies() -> None:
    nothing = np.zeros(0, np.uint32)
    counted = Counted(0, 0, 0, None, 0, 0, None, None, nothing, nothing)
    empty = counted.report(seconds=1.0, num_faults=0, leaks=Leaks(0, 0, 0), memory=MemoryCurve())
    assert empty.demand_p99_us is None and empty.is_clean
    assert len(empty.lines()) == 3


@pytest.mark.stress
@pytest.mark.timeout(600)
@pytest.mark.parametrize("arrangement", ["emulated", "direct"])
def test_a_minute_with_every_fault_ends_with_nothing_corrupt_lost_or_leaked(
    arrangement: str, tmp_path: Path
) -> None:
    place = tmp_path / "report.json"
    options = ["--seconds", "60", "--clients", "2", "--faults", "all", "--arrangement", arrangement]
    answer = run("stress", *options, "--json", place, timeout_s=500)
    assert answer.code == 0, answer.err
    assert json.loads(place.read_text())["faults_injected"] >= 9


@pytest.mark.parametrize(
    ("module", "absent"),
    [("launch.stress.verb", "numpy"), ("launch.stress.run", "torch"), ("launch.stress.sweep", "torch")],
)
def test_help_is_light_and_the_supervisor_imports_no_torch(module: str, absent: str) -> None:
    probe = f"import sys, {module}; print({absent!r} in sys.modules)"
    ended = subprocess.run([sys.executable, "-P", "-c", probe], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
