"""`sidestage simulate`: its figures are the library's, its JSON has the names of the contract."""

import importlib.util
import json
import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.cli import Answer, assert_refused, call, running

from compute.layer_steps import layer_steps
from compute.policies import KNOWN
from compute.replay import Scope, replay
from compute.timing_model import Link, Moved, timing
from compute.trace import Trace
from compute.trace_file import read, write

Capture = pytest.CaptureFixture[str]

NAMES = {
    "trace",
    "policy",
    "capacity",
    "scope",
    "slots",
    "lookups",
    "hits",
    "misses",
    "hit_rate",
    "gap_closed",
    "seconds",
}
PNG = b"\x89PNG\r\n\x1a\n"


def make_trace(path: Path, seed: int = 0, expert_bytes: int | None = None, experts: int = 8) -> Path:
    rng = np.random.default_rng(seed)
    chosen = np.argsort(rng.gumbel(size=(150, 3, experts)) + np.linspace(0, 2, experts))[:, :, :2]
    meta = {} if expert_bytes is None else {"expert_bytes": expert_bytes}
    zeros = np.zeros(150, np.int32)
    write(path, Trace(chosen.astype(np.int16), zeros.astype(np.uint8), zeros, experts, meta=meta))
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return make_trace(tmp_path / "small.npz")


def simulate(capsys: Capture, *arguments: str | Path) -> Answer:
    return call(capsys, "simulate", "--jobs", "1", *arguments)


def results(capsys: Capture, *arguments: str | Path) -> list[dict[str, object]]:
    answer = simulate(capsys, *arguments, "--json", "-")
    assert answer.code == 0, answer
    told: list[dict[str, object]] = answer.json["results"]
    return told


# --- figures ---------------------------------------------------------------------------------


def test_a_policy_that_could_not_hear_the_router_is_named(capsys: Capture, trace: Path) -> None:
    answer = simulate(capsys, trace, "--capacity", "0.5", "--policy", "lru,reuse-distance-probs")
    assert "reuse-distance-probs decided on choices alone for small: recorded without --probs" in answer.out
    answer = simulate(capsys, trace, "--capacity", "0.5", "--policy", "lru,reuse-distance")
    assert "choices alone" not in answer.out


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_figures_are_those_of_the_replay(capsys: Capture, trace: Path, scope: str) -> None:
    (told,) = results(capsys, trace, "--capacity", "0.5", "--scope", scope, "--policy", "lfu-aged")
    steps, num_slots = layer_steps(read(trace)), 12 if scope == "global" else 4
    hits = {name: replay(steps, name, num_slots, Scope(scope)).hits for name in ("lfu-aged", "lru", "belady")}
    assert told["hits"] == hits["lfu-aged"]
    assert told["lookups"] == told["hits"] + told["misses"] == 900  # type: ignore[operator]
    assert told["slots"] == 12
    gap = (hits["lfu-aged"] - hits["lru"]) / (hits["belady"] - hits["lru"])
    assert told["gap_closed"] == pytest.approx(gap)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_all_policies_are_all_that_are_known(capsys: Capture, trace: Path, scope: str) -> None:
    told = results(capsys, trace, "--capacity", "0.5", "--scope", scope, "--policy", "all")
    assert [each["policy"] for each in told] == list(KNOWN)
    assert all(each.keys() >= NAMES for each in told)
    assert {each["trace"] for each in told} == {str(trace)}


def test_every_trace_and_capacity_has_its_rows(capsys: Capture, tmp_path: Path, trace: Path) -> None:
    other = make_trace(tmp_path / "other.npz", seed=1)
    told = results(capsys, trace, other, "--capacity", "0.5", "--capacity", "0.25", "--policy", "lru,belady")
    assert [(each["trace"], each["capacity"], each["policy"]) for each in told] == [
        (str(path), capacity, policy)
        for path in (trace, other)
        for capacity in (0.5, 0.25)
        for policy in ("lru", "belady")
    ]


def test_a_gap_that_is_none_is_null(capsys: Capture, trace: Path) -> None:
    (told,) = results(capsys, trace, "--capacity", "1", "--policy", "lru")
    assert told["gap_closed"] is None


def test_tokens_cut_the_trace(capsys: Capture, trace: Path) -> None:
    (told,) = results(capsys, trace, "--capacity", "0.5", "--policy", "lru", "--tokens", "10")
    assert (told["lookups"], told["tokens"]) == (60, 10)


def test_a_table_is_on_stdout_and_json_in_a_file(capsys: Capture, trace: Path, tmp_path: Path) -> None:
    place = tmp_path / "results.json"
    answer = simulate(capsys, trace, "--policy", "lru,belady", "--json", place)
    lines = answer.out.splitlines()
    assert "small: 150 tokens, 3 layers of 8 experts, top 2" in lines[0]
    assert [line.split()[0] for line in lines[2:4]] == ["belady", "lru"]
    assert len(json.loads(place.read_text())["results"]) == 4


# --- link and prefetch -----------------------------------------------------------------------


def test_a_link_adds_the_timing_models_figures(capsys: Capture, trace: Path) -> None:
    asked = (
        "--capacity",
        "0.5",
        "--policy",
        "lru",
        "--link",
        "1MB/s",
        "--blob-bytes",
        "50",
        "--layer-us",
        "20",
    )
    (told,) = results(capsys, trace, *asked)
    misses = replay(layer_steps(read(trace)), "lru", 12).misses
    times = timing(Moved(150, 450, misses), Link(1e6, 50, 20))
    assert told["stall_s"] == pytest.approx(times.stall_s)
    assert told["tokens_per_second"] == pytest.approx(150 / times.serial_s)
    assert told["t_star_s"] == pytest.approx(times.bound_s / 150)


def test_the_size_of_an_expert_may_be_the_traces_own(capsys: Capture, tmp_path: Path) -> None:
    own = make_trace(tmp_path / "own.npz", expert_bytes=50)
    asked = ("--capacity", "0.5", "--policy", "lru", "--link", "1MB/s", "--layer-us", "20")
    assert (
        results(capsys, own, *asked)[0]["stall_s"]
        == results(capsys, own, *asked, "--blob-bytes", "50B")[0]["stall_s"]
    )


def test_a_predictor_is_replayed_but_not_for_the_bounds(capsys: Capture, trace: Path) -> None:
    asked = ("--capacity", "0.5", "--policy", "lru,belady", "--predictor", "st-moe")
    ahead, bound = results(capsys, trace, *asked)
    (alone,) = results(capsys, trace, "--capacity", "0.5", "--policy", "lru")
    assert (ahead["predictor"], ahead["lookahead"], bound["predictor"]) == ("st-moe", 1, "none")
    assert ahead["prefetch_issued"] > 0  # type: ignore[operator]
    assert ahead["lookups"] == ahead["hits"] + ahead["late"] + ahead["misses"]  # type: ignore[operator]
    assert ahead["misses"] != alone["misses"]


def test_the_gate_is_replayed_from_a_trace_that_holds_it_only(capsys: Capture, trace: Path) -> None:
    assert_refused(simulate(capsys, trace, "--predictor", "gate"), "gate", "record it again")


# --- ending ----------------------------------------------------------------------------------


def test_ctrl_c_ends_every_process_without_a_traceback(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    chosen = np.argsort(rng.random((20000, 4, 32)), axis=-1)[:, :, :4].astype(np.int16)
    zeros = np.zeros(20000, np.int32)
    write(tmp_path / "long.npz", Trace(chosen, zeros.astype(np.uint8), zeros, 32))
    with running("simulate", tmp_path / "long.npz", "--jobs", "2") as under_way:
        worker = under_way.child("compute.replay_worker")
        assert os.getsid(worker.pid) == worker.pid  # so a terminal's Ctrl-C is not its own
        under_way.send(signal.SIGINT)
        answer = under_way.end()
    assert answer.code == 130
    assert "Traceback" not in answer.err
    _, alive = psutil.wait_procs([worker], timeout=30)  # one that was just starting hears its input's end
    assert not alive


# --- pictures --------------------------------------------------------------------------------


@pytest.mark.parametrize("capacities", [("0.5",), ("0.25", "0.5", "0.75")])
def test_a_picture_is_drawn(
    capsys: Capture, trace: Path, tmp_path: Path, capacities: tuple[str, ...]
) -> None:
    place = tmp_path / "curves.png"
    asked = [word for capacity in capacities for word in ("--capacity", capacity)]
    assert simulate(capsys, trace, *asked, "--plot", place).code == 0
    assert place.read_bytes().startswith(PNG)
    assert [path.name for path in tmp_path.glob("curves*")] == ["curves.png"]


def test_without_matplotlib_the_picture_is_refused_before_the_work(
    capsys: Capture, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("launch.lab.config.find_spec", lambda name: None)
    answer = simulate(capsys, trace, "--plot", tmp_path / "x.png")
    assert_refused(answer, "matplotlib", "sidestage[plot]")


# --- advice ----------------------------------------------------------------------------------


def test_advice_is_given_for_each_capacity(capsys: Capture, trace: Path) -> None:
    answer = simulate(capsys, trace, "--capacity", "0.25", "--capacity", "0.5", "--advise", "--json", "-")
    advice = answer.json["advice"]
    assert [each["slots"] for each in advice] == [6, 12]
    assert all(each["policy"] in KNOWN and "belady" not in each["policy"] for each in advice)
    assert all(each.keys() == {"capacity", "slots", "policy", "lookahead", "reason"} for each in advice)


def test_advice_for_a_memory_budget_leaves_room_for_those_who_pass(capsys: Capture, trace: Path) -> None:
    asked = ("--advise", "--ram", "1500", "--blob-bytes", "100", "--policy", "lru,lfu-aged")
    answer = simulate(capsys, trace, *asked)
    assert "advice: sidestage run --policy" in answer.out and "--slots 12 --lookahead" in answer.out


def test_advice_with_a_link_and_a_predictor_compares_lookaheads(capsys: Capture, trace: Path) -> None:
    asked = ("--advise", "--capacity", "0.5", "--policy", "lru", "--predictor", "previous-token")
    asked += ("--lookahead", "2", "--link", "1MB/s", "--blob-bytes", "50", "--layer-us", "40")
    (advice,) = simulate(capsys, trace, *asked, "--json", "-").json["advice"]
    assert "in the replay a lookahead of" in advice["reason"]


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (("--capacity", "0"), ("--capacity is 0", "at most 1")),
        (("--capacity", "1.5"), ("--capacity is 1.5", "at most 1")),
        (("--capacity", "0.05"), ("1 slots", "2 experts at once", "larger --capacity")),
        (("--policy", "lru,mru"), ('"mru"', "lru, lfu, lfu-aged")),
        (("--policy", "lfu+speed=9", "--capacity", "0.5"), ('no option "speed"',)),
        (("--scope", "token"), ("--scope", "global, layer")),
        (("--tokens", "0"), ("--tokens is 0",)),
        (("--jobs", "0"), ("--jobs is 0",)),
        (("--link", "1MB/s"), ("--layer-us",)),
        (("--layer-us", "5"), ("--link",)),
        (("--link", "1MB/s", "--layer-us", "5"), ("--blob-bytes",)),
        (("--link", "1MB", "--layer-us", "5"), ("--link", "40MB/s")),
        (("--ram", "1GiB"), ("--ram belongs to --advise",)),
        (("--ram", "300", "--blob-bytes", "100", "--advise"), ("holds 3 experts", "larger --ram")),
        (("--advise", "--policy", "belady"), ("--advise", "belady")),
        (("--predictor", "oracle"), ("--predictor", "previous-token")),
        (("--lookahead", "2"), ("--lookahead 2 needs a predictor",)),
        (("--plot", "curves.gif"), ("--plot", ".png")),
        (("--json", "no/such/folder/x.json"), ("--json", "does not exist")),
    ],
)
def test_a_wrong_setting_is_refused(
    capsys: Capture, trace: Path, wrong: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert_refused(simulate(capsys, trace, *wrong), *words)


def test_advice_over_traces_of_several_models_is_refused(
    capsys: Capture, tmp_path: Path, trace: Path
) -> None:
    other = make_trace(tmp_path / "wide.npz", experts=10)
    assert_refused(simulate(capsys, trace, other, "--advise"), "one model")


def test_a_bad_trace_is_refused_with_its_name(capsys: Capture, tmp_path: Path, trace: Path) -> None:
    text, cut, pickled, wild = (tmp_path / f"{name}.npz" for name in ("text", "cut", "pickled", "wild"))
    text.write_text("no trace")
    cut.write_bytes(trace.read_bytes()[:-200])
    np.savez(pickled, experts=np.array([{"a": 1}], dtype=object))
    np.savez(wild, experts=np.full((3, 2, 2), 99, np.int16), meta=np.array('{"n_experts": 8}'))
    for path, word in (
        (tmp_path / "nowhere.npz", "no such file"),
        (text, "damaged or no .npz"),
        (cut, "damaged or no .npz"),
        (pickled, "pickled"),
        (wild, "99"),
    ):
        assert_refused(simulate(capsys, path), path.name, word)
        assert_refused(call(capsys, "trace", "info", path), path.name, word)
