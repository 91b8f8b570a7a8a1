"""`sidestage bench` as a user runs it: the shipped model, its JSON, and routing that a trace dictates."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cli import Answer, run

from compute.layer_steps import layer_steps
from compute.policies import DEFAULT
from compute.replay import replay
from compute.trace import Trace
from compute.trace_file import write

LAYERS, EXPERTS, TOP_K = 6, 32, 4
PP, TG, SLOTS = 8, 12, 48

NAMES = {
    "arm",
    "pp_tokens_per_second",
    "tg_tokens_per_second",
    "tg_deviation",
    "hit_rate",
    "bound_tokens_per_second",
    "efficiency",
    "peak_rss_bytes",
}


@dataclass(frozen=True, slots=True)
class Bench:
    """One run over the shipped model, and the trace it was told to follow."""

    answer: Answer
    trace: Trace

    @property
    def arms(self) -> dict[str, dict[str, Any]]:
        return {arm["arm"]: arm for arm in self.answer.json["arms"]}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Warm-up and one repeat of every arm; both segments have tokens of their own."""
    file = tmp_path_factory.mktemp("routing") / "told.npz"
    trace = _trace(2 * (PP + TG))
    write(file, trace)
    arms = "resident,offload,oracle,transformers"
    sizes = ("--pp", str(PP), "--tg", str(TG), "--repeat", "1", "--slots", str(SLOTS), "--threads", "1")
    told = run("bench", "--arms", arms, *sizes, "--routing", file, "--json", "-", timeout_s=280)
    return Bench(told, trace)


def _trace(num_tokens: int) -> Trace:
    """Some experts liked better than others; passes as the bench makes them."""
    random = np.random.default_rng(5)
    liked = random.random((LAYERS, EXPERTS)) ** 4
    draws = random.random((num_tokens, LAYERS, EXPERTS)) * liked
    passes = [0] * PP + list(range(1, TG + 1)) + [TG + 1] * PP + list(range(TG + 2, 2 * TG + 2))
    return Trace(
        experts=np.argsort(-draws, axis=2)[:, :, :TOP_K].astype(np.int16),
        phase=np.zeros(num_tokens, np.uint8),
        sequence=np.repeat(np.arange(2, dtype=np.int32), PP + TG),
        num_experts=EXPERTS,
        pass_number=np.array(passes, np.int32),
    )


def test_what_plan_would_have_said_stands_beside_our_arms(bench: Bench) -> None:
    for name in ("resident", "offload", "oracle"):
        band = bench.arms[name]["predicted_tokens_per_second"]
        assert 0 < band["low"] < band["likely"] < band["high"]
        assert f"{name}: plan says {band['likely']:.3g} tok/s" in bench.answer.err
    assert "predicted_tokens_per_second" not in bench.arms["transformers"]


def test_every_arm_ran_and_has_the_contract_names(bench: Bench) -> None:
    assert bench.answer.code == 0, bench.answer.err
    assert list(bench.arms) == ["resident", "offload", "oracle", "transformers"]
    for arm in bench.arms.values():
        assert arm.keys() >= NAMES
        assert arm["pp_tokens_per_second"] > 0 and arm["tg_tokens_per_second"] > 0
        assert arm["peak_rss_bytes"] > 50 * 2**20


def test_the_report_says_how_it_was_made(bench: Bench) -> None:
    report = bench.answer.json
    assert report["gate_recall"] == 0.75
    assert report["threads"] == 1
    assert {"torch", "transformers"} <= report["versions"].keys()
    assert report["command"].startswith("sidestage bench --arms resident,offload,oracle,transformers --pp 8")


def test_the_resident_arm_hits_always_and_reads_nothing(bench: Bench) -> None:
    assert bench.arms["resident"]["hit_rate"] == 1.0
    assert bench.arms["resident"]["bytes_read"] == 0
    assert bench.arms["resident"]["bound_tokens_per_second"] is None


def test_routing_is_the_trace_s(bench: Bench) -> None:
    """Distinct experts of the decode passes of segment 1, layer by layer, as many as the trace has."""
    steps = layer_steps(bench.trace)
    decode = steps.step_of_pass[TG + 2]
    lookups = steps.num_lookups - int(steps.start[decode])
    assert bench.arms["resident"]["lookups"] == lookups == TG * LAYERS * TOP_K
    assert bench.arms["offload"]["lookups"] == bench.arms["oracle"]["lookups"] == lookups
    prompt = lookups_of_prompt(bench.trace)
    assert bench.arms["offload"]["pp_lookups"] == prompt


def lookups_of_prompt(trace: Trace) -> int:
    prompt = trace.experts[PP + TG : 2 * PP + TG]
    return sum(len(np.unique(prompt[:, layer])) for layer in range(LAYERS))


def test_the_gate_is_as_good_as_it_was_told_to_be(bench: Bench) -> None:
    assert bench.arms["oracle"]["prediction_recall"] == 1.0
    assert 0.6 < bench.arms["offload"]["prediction_recall"] < 0.9


def test_an_offloaded_arm_stands_beside_its_bound(bench: Bench) -> None:
    offload = bench.arms["offload"]
    assert offload["bound"] == "overlapped"
    assert offload["efficiency"] == pytest.approx(
        (TG / offload["tg_s"][0]) / offload["bound_tokens_per_second"]
    )


def test_without_prefetch_the_counters_are_a_replay_s(tmp_path: Path) -> None:
    trace = _trace(2 * (PP + TG))
    write(tmp_path / "told.npz", trace)
    sizes = ("--pp", str(PP), "--tg", str(TG), "--repeat", "1", "--slots", str(SLOTS), "--threads", "1")
    told = ("--routing", tmp_path / "told.npz", "--json", tmp_path / "out.json")
    answer = run("bench", "--arms", "offload@0", *sizes, *told)
    assert answer.code == 0, answer.err
    (offload,) = json.loads((tmp_path / "out.json").read_text())["arms"]
    everything = replay(layer_steps(trace), DEFAULT, SLOTS)
    until_decode = replay(layer_steps(trace.first(2 * PP + TG)), DEFAULT, SLOTS)
    assert offload["hits"] == everything.hits - until_decode.hits
    assert offload["misses"] == everything.misses - until_decode.misses
    assert offload["lookahead"] == 0
    assert "offload@0" in answer.out
