"""The report of a CUDA device, as far as it goes without one."""

import json
import sys
from pathlib import Path

import pytest
from gpu import kernel_report, report
from gpu.link_report import report as link_report
from support.fake_driver import FakeDriver

XML = """<testsuites><testsuite tests="3" failures="1" errors="0" skipped="{skipped}">
<testcase name="test_a"/><testcase name="test_b"><failure message="not equal&#10;more"/></testcase>
</testsuite></testsuites>"""


def test_a_failed_check_is_named() -> None:
    step = report.read_checks(XML.format(skipped=1))
    assert step.facts["failures"] == 1 and step.table == [{"test": "test_b", "why": ["not equal"]}]
    assert not step.error


def test_checks_that_were_all_skipped_are_no_success() -> None:
    assert "no CUDA device" in report.read_checks(XML.format(skipped=3)).error


def test_what_was_not_measured_is_written_as_that() -> None:
    bad = {"arm": "accelerate", "error": "out of memory"}
    good = {"arm": "offload@1", "tg_tokens_per_second": 12.34, "hit_rate": 0.5, "efficiency": None}
    steps = [
        report.Step("bench, half", table=[bad, good]),
        report.Step("link", error="not finished within 9 s"),
    ]
    text = report.as_markdown(steps)
    assert "| accelerate |  |  |  |  | out of memory |" in text
    assert "| offload@1 | 12.3 | - | - | 50.0% |" in text
    assert "**Not measured: not finished within 9 s**" in text


def test_a_command_that_dies_or_hangs_is_a_step_with_an_error() -> None:
    died = report.run(
        "a", [sys.executable, "-c", "raise SystemExit('why')"], 60, lambda text: report.Step("")
    )
    assert died.error == "why"
    slow = report.run(
        "b", [sys.executable, "-c", "import time; time.sleep(60)"], 2, lambda text: report.Step("")
    )
    assert "not finished within 2 s" in slow.error
    assert report.run("c", ["true"], 0.5, lambda text: report.Step("")).error == "no time was left"


def test_the_link_is_told_with_its_share_of_the_best() -> None:
    # The transport is timed by the host's clock: a link as slow as this leaves a share on any machine.
    told = link_report(FakeDriver(rate=1e9, tick_ns=10**6, reads_pageable=True), 2**20, {"small": 70_000})
    assert told["table"][0]["bytes"] == 73_728 and told["table"][0]["of the best"] > 0  # type: ignore[index]


def test_the_kernels_rows_tell_time_and_bandwidth() -> None:
    pytest.importorskip("triton")
    from compute.kernels.triton_measure import DeviceFigures

    figures = DeviceFigures("triton", "4", 64, 1, 8, 10.04, 33.3, 2.1e12, 2.8e12)
    rows = list(kernel_report.table(lambda *shape, **case: figures))
    assert len(rows) == len(kernel_report.SHAPES) * len(kernel_report.CASES)
    assert rows[0]["us"] == 10.0 and rows[0]["GB/s"] == 2100 and rows[0]["of a copy"] == 0.75


def test_steps_are_chosen_by_name_and_the_files_say_what_each_came_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu-report", str(tmp_path), "--steps", "link,bench-10"])
    monkeypatch.setitem(report.STEPS, "link", lambda *_: report.Step("link", facts={"best": 5}))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert report.main() == 1
    text = (tmp_path / "gpu-report.md").read_text()
    assert "- best: 5" in text and "bench-10: slots for 10 %" in text
    assert (
        "**Not measured: sidestage: --device is 'cuda', and there is no CUDA device here: use cpu**" in text
    )
    assert len(json.loads((tmp_path / "gpu-report.json").read_text())) == 2


def test_an_unknown_step_is_refused_with_those_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu-report", str(tmp_path), "--steps", "bench-33"])
    with pytest.raises(SystemExit):
        report.main()
    assert "'bench-33' is no step; allowed: doctor, model, bench-25" in capsys.readouterr().err
