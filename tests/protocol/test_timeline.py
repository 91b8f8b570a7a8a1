"""The timeline: events of several processes on one clock, within a bound."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from protocol.timeline import Timeline, merge


def events_of(path: Path, phase: str) -> list[dict[str, Any]]:
    return [event for event in json.loads(path.read_text()) if event["ph"] == phase]


def test_a_span_is_a_complete_event_in_microseconds(tmp_path: Path) -> None:
    timeline = Timeline("loader")
    timeline.span("read", "reader 0", 1_000_000, 3_500_000, expert=7)
    timeline.write(tmp_path / "t.json")
    (span,) = events_of(tmp_path / "t.json", "X")
    assert (span["name"], span["ts"], span["dur"], span["args"]) == ("read", 1000.0, 2500.0, {"expert": 7})


def test_tracks_and_the_process_have_names(tmp_path: Path) -> None:
    timeline = Timeline("compute")
    timeline.span("copy", "link", 0, 1)
    timeline.span("use", "experts", 0, 1)
    timeline.write(tmp_path / "t.json")
    names = {(e["name"], e["args"].get("name")) for e in events_of(tmp_path / "t.json", "M")}
    assert {("process_name", "compute"), ("thread_name", "link"), ("thread_name", "experts")} <= names
    tracks = {
        e["args"]["name"]: e["tid"] for e in events_of(tmp_path / "t.json", "M") if e["name"] == "thread_name"
    }
    spans = {e["name"]: e["tid"] for e in events_of(tmp_path / "t.json", "X")}
    assert spans == {"copy": tracks["link"], "use": tracks["experts"]}


def test_flow_arrows_keep_their_id_across_processes(tmp_path: Path) -> None:
    compute, loader = Timeline("compute"), Timeline("loader")
    compute.flow("s", 5 << 24 | 70, "fetch", 10)
    loader.flow("t", 5 << 24 | 70, "reader 0", 20)
    compute.flow("f", 5 << 24 | 70, "experts", 30)
    compute.write(tmp_path / "c.json")
    loader.write(tmp_path / "l.json")
    assert merge([tmp_path / "c.json", tmp_path / "l.json"], tmp_path / "all.json") == []
    trace = json.loads((tmp_path / "all.json").read_text())["traceEvents"]
    arrows = sorted((e for e in trace if e["ph"] in "stf"), key=lambda e: e["ts"])
    assert [e["ph"] for e in arrows] == ["s", "t", "f"]
    assert len({(e["id"], e["cat"], e["name"]) for e in arrows}) == 1


def test_measure_spans_its_body_even_when_it_raises(tmp_path: Path) -> None:
    timeline = Timeline("x")
    with pytest.raises(KeyError), timeline.measure("work", "track"):
        time.sleep(0.002)
        raise KeyError
    timeline.write(tmp_path / "t.json")
    (span,) = events_of(tmp_path / "t.json", "X")
    assert span["dur"] >= 2000


def test_what_does_not_fit_is_counted_and_said_in_the_file(tmp_path: Path) -> None:
    timeline = Timeline("x", max_events=2)
    for _ in range(5):
        timeline.span("a", "b", 0, 1)
    timeline.write(tmp_path / "t.json")
    assert len(events_of(tmp_path / "t.json", "X")) == 2
    (dropped,) = [e for e in events_of(tmp_path / "t.json", "M") if e["name"] == "dropped_events"]
    assert dropped["args"] == {"dropped": 3}


def test_merging_says_whose_file_is_missing(tmp_path: Path) -> None:
    Timeline("x").write(tmp_path / "here.json")
    assert merge([tmp_path / "here.json", tmp_path / "gone.json"], tmp_path / "all.json") == [
        tmp_path / "gone.json"
    ]


def test_merging_refuses_a_file_that_is_no_timeline(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text("{}")
    with pytest.raises(ValueError, match="not a timeline"):
        merge([tmp_path / "odd.json"], tmp_path / "all.json")
    assert not (tmp_path / "all.json").exists()
