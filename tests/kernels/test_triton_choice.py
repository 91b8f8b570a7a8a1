"""On CUDA the Triton kernel is chosen; where it cannot be, torch serves and the reason is told."""

from importlib import metadata

import pytest
import torch

from compute import kernels
from compute.kernels import triton_choice
from compute.kernels.measure import gated_layout
from protocol.blob import BlobLayout

LAYOUT = gated_layout(64, 64, "4", 64)


@pytest.fixture(autouse=True)
def say_again() -> None:
    kernels._say_once.cache_clear()


def pretend(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], version: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(triton_choice.metadata, "version", lambda name: version)
    monkeypatch.setattr(triton_choice, "_cannot_launch", str)


def test_cuda_gets_the_triton_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    pretend(monkeypatch, (8, 0), "3.6.0")
    kernel, reason = kernels.choose(LAYOUT, device="cuda:0")
    assert kernel.name == "triton" and "cuda:0" in reason
    unquantized = BlobLayout.pack(
        "none", 0, [("gate_up_proj", "bfloat16", (64, 32)), ("down_proj", "bfloat16", (32, 32))]
    )
    assert kernels.choose(unquantized, device="cuda")[0].name == "triton"


def test_an_old_gpu_is_served_by_torch_and_the_reason_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(monkeypatch, (7, 5), "3.9.0")
    for _ in range(2):
        kernel, reason = kernels.choose(LAYOUT, device="cuda")
        assert kernel.name == "reference" and "7.5" in reason and "8.0" in reason
    assert len(caplog.records) == 1


def test_an_old_triton_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (9, 0), "3.5.1")
    kernel, reason = kernels.choose(LAYOUT, device="cuda")
    assert kernel.name == "reference" and "triton 3.5.1" in reason


def test_without_triton_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(triton_choice.metadata, "version", missing)
    kernel, reason = kernels.choose(LAYOUT, device="cuda")
    assert kernel.name == "reference" and "sidestage[gpu]" in reason
    with pytest.raises(ValueError, match=r"sidestage\[gpu\]"):
        kernels.choose(LAYOUT, "triton", "cuda")


def test_a_triton_that_cannot_compile_its_launchers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = pytest.importorskip("triton.runtime")

    class Driver:
        @property
        def active(self) -> object:
            raise RuntimeError("Failed to find C compiler.\nAnd more")

    can_launch = triton_choice._cannot_launch
    pretend(monkeypatch, (9, 0), "3.6.0")
    monkeypatch.setattr(triton_choice, "_cannot_launch", can_launch)
    monkeypatch.setattr(runtime, "driver", Driver())
    kernel, reason = kernels.choose(LAYOUT, device="cuda")
    assert kernel.name == "reference" and "(Failed to find C compiler.)" in reason


def test_a_matrix_that_is_too_large_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    pretend(monkeypatch, (9, 0), "3.9.0")
    kernel, reason = kernels.choose(gated_layout(2**16, 2**15, "4", 64), device="cuda")
    assert kernel.name == "reference" and "gate_up_proj" in reason


@pytest.mark.parametrize("name,device", [("cpu", "cuda"), ("triton", "cpu"), ("auto", "mps")])
def test_a_kernel_that_does_not_run_on_the_device_is_refused(name: str, device: str) -> None:
    with pytest.raises(ValueError, match="does not run on"):
        kernels.choose(LAYOUT, name, device)
