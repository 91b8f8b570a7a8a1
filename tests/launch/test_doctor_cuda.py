"""doctor's CUDA section: what it says with and without a device, from facts as a device would tell them."""

import json
import subprocess

import pytest

from launch.doctor import cuda
from launch.doctor.finding import line_of

FACTS: dict[str, object] = {
    "name": "Any GPU",
    "cuda": "13.0",
    "best": 25.3e9,
    "by_chunk": {"65536": 6.0e9, "4194304": 25.1e9},
    "pageable": 9.6e9,
    "page_locking": 3.2e9,
    "bytes": 2**28,
}


def test_no_device_is_one_line_and_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "has_cuda", lambda: False)
    monkeypatch.setattr(cuda.os.path, "exists", lambda path: False)
    assert [line_of(finding) for finding in cuda.findings()] == ["ok    cuda: no CUDA device"]


def test_a_device_that_torch_cannot_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "has_cuda", lambda: False)
    monkeypatch.setattr(cuda, "torch_is_for_cuda", lambda: False)
    monkeypatch.setattr(cuda.os.path, "exists", lambda path: True)
    (finding,) = cuda.findings()
    assert finding.status == "warn" and "built for CUDA" in finding.fix


def test_speeds_are_told_by_chunk() -> None:
    (finding,) = cuda.measured(lambda: FACTS)
    assert finding.status == "ok"
    assert "25.3 GB/s page-locked, 9.6 pageable" in finding.text
    assert "64.0 KiB 6.0, 4.0 MiB 25.1" in finding.text


def test_the_kernels_speed_is_told_beside_the_links() -> None:
    _, kernels = cuda.measured(lambda: {**FACTS, "kernels": "triton, 900 GB/s"})
    assert kernels.text == "triton, 900 GB/s"


def test_a_slow_link_is_told_with_what_to_do() -> None:
    (finding,) = cuda.measured(lambda: {**FACTS, "best": 3e9})
    assert finding.status == "warn" and "lanes" in finding.fix


def test_a_probe_that_fails_is_a_failed_check() -> None:
    (finding,) = cuda.measured(lambda: {"error": "the device stands still"})
    assert finding.status == "fail" and "stands still" in finding.text


@pytest.mark.parametrize(("width", "status"), [(8, "warn"), (16, "ok")])
def test_missing_lanes_are_told(width: int, status: str) -> None:
    finding = cuda.pcie_finding("Any GPU, driver 580", (4, width), (5, 16))
    assert finding.status == status and f"generation 4 x{width} now, 5 x16 at most" in finding.text


def test_a_probe_that_dies_says_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, stdout="", stderr="a trace\nRuntimeError: no driver\n")

    monkeypatch.setattr(subprocess, "run", die)
    assert cuda.run_probe() == {"error": "RuntimeError: no driver"}


def test_a_probe_that_hangs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired("probe", 1)

    monkeypatch.setattr(subprocess, "run", hang)
    assert "stands still" in str(cuda.run_probe()["error"])


def test_a_probe_without_a_device_answers_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from launch.doctor import cuda_probe

    if torch.cuda.is_available():
        pytest.skip("there is a device")
    assert cuda_probe.main() == 0
    assert "does not see the device" in json.loads(capsys.readouterr().out)["error"]
