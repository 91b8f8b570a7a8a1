"""What a live run counts, a replay of its recorded trace counts too: exactly, prefill included."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.cli import call, run

from compute.layer_steps import layer_steps
from compute.policies import DEFAULT
from compute.replay import replay
from compute.trace_file import read
from launch.config import RunConfig
from launch.lab.config import RecordConfig
from launch.lab.record import record_trace

PROMPTS = "Once upon a time there was a king who\n\nThe sea is\n"


def record(folder: Path, store: Path, **settings: Any) -> tuple[Path, dict[str, Any]]:
    """(trace, the live run's report)."""
    (folder / "prompts.txt").write_text(PROMPTS)
    own = {name: settings.pop(name) for name in ("text", "passes", "tokens", "probs") if name in settings}
    given = {"prompts": str(folder / "prompts.txt")} if "text" not in own else {}
    run_config = RunConfig(
        model=str(store),
        max_new_tokens=9,
        temperature=0.0,
        threads=1,
        lookahead=0,
        json=str(folder / "live.json"),
        **settings,
    )
    out = folder / "live.npz"
    record_trace(RecordConfig(run=run_config, out=str(out), **given, **own))
    return out, json.loads((folder / "live.json").read_text())


@pytest.mark.parametrize(
    ("policy", "slots"),
    [
        ("lru", 4),  # top-k
        ("lru", 48),
        ("lfu-aged", 23),
        ("reuse-distance", 37),  # serves some without keeping them
        ("reuse-distance-probs", 37),
        ("s3-fifo", 11),
        ("heat", 30),  # serves some without keeping them
        ("score-ewma", 40),  # looks at the routers' distributions
        ("lru", 192),  # every expert
        ("reuse-distance", 192),
    ],
)
def test_hits_late_and_misses_are_equal(store_none: Path, tmp_path: Path, policy: str, slots: int) -> None:
    trace, live = record(tmp_path, store_none, policy=policy, slots=slots, probs=True)
    outcome = replay(layer_steps(read(trace)), policy, slots)
    assert live["lookups"] == outcome.lookups > 0
    assert (live["hits"], live["late"], live["misses"]) == (outcome.hits, 0, outcome.misses)
    assert live["evictions"] == outcome.evictions


@pytest.mark.parametrize("passes", ["token", "window"])
def test_a_text_that_is_forced_through_counts_the_same(store_none: Path, tmp_path: Path, passes: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The wolf came to the door of the house, and he knocked. " * 4)
    trace, live = record(tmp_path, store_none, slots=30, text=str(text), passes=passes, tokens=24)
    outcome = replay(layer_steps(read(trace)), DEFAULT, 30)
    assert (live["hits"], live["misses"]) == (outcome.hits, outcome.misses)
    assert live["tokens"] == 24


def test_run_record_and_simulate_agree_on_the_command_line(
    capsys: pytest.CaptureFixture[str], store_none: Path, tmp_path: Path
) -> None:
    """The same prompt: `run` as the user runs it, against `simulate` over what `trace record` wrote."""
    (tmp_path / "one.txt").write_text("There was once a wolf\n")
    common = ("--temperature", "0", "--max-new-tokens", "8", "--threads", "1", "--lookahead", "0")
    cache = ("--slots", "48", "--policy", "lfu-aged")
    live = run("run", store_none, *common, *cache, "--prompt", "There was once a wolf", "--json", "-").json
    trace = tmp_path / "one.npz"
    recorded = call(
        capsys, "trace", "record", store_none, "--prompts", tmp_path / "one.txt", *common, "--out", trace
    )
    assert recorded.code == 0, recorded
    asked = ("--capacity", "0.25", "--policy", "lfu-aged", "--jobs", "1", "--json", "-")
    (replayed,) = call(capsys, "simulate", trace, *asked).json["results"]
    assert [live[name] for name in ("slots", "lookups", "hits", "misses", "late")] == [
        *(replayed[name] for name in ("slots", "lookups", "hits", "misses")),
        0,
    ]
