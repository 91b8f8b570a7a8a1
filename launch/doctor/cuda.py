"""The CUDA device, if there is one: its link, page-locking, versions, and how fast all of it is.

What needs torch is measured by a child process, so that the doctor itself stays light and a device
that stands still costs a timeout.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

from compute.cuda_presence import has_cuda, torch_is_for_cuda
from compute.pin_limit import is_wsl, pin_limit
from launch.doctor.finding import Finding
from protocol.units import format_size

_PROBE_TIMEOUT_S = 120.0
#: Bytes a second below which a link is not what the machine could have.
_SLOW_LINK = 6e9

Facts = dict[str, object]


def findings() -> Iterator[Finding]:
    if not has_cuda():
        yield absence()
        return
    yield pcie()
    yield triton()
    yield page_locking()
    yield from measured()


def absence() -> Finding:
    """No device is no fault; a torch that cannot use one may be."""
    if torch_is_for_cuda() or not os.path.exists("/dev/nvidiactl"):
        return Finding("cuda", "ok", "no CUDA device")
    fix = "install the torch that is built for CUDA"
    return Finding("cuda", "warn", "there is a device, and torch is built for the CPU", fix)


def pcie() -> Finding:
    """Generation and width of the link, as the driver tells them."""
    try:
        import pynvml
    except ImportError:
        return Finding("pcie", "warn", "not known: nvidia-ml-py is missing", "pip install 'sidestage[gpu]'")
    try:
        pynvml.nvmlInit()
        try:
            device = pynvml.nvmlDeviceGetHandleByIndex(0)
            now = (
                pynvml.nvmlDeviceGetCurrPcieLinkGeneration(device),
                pynvml.nvmlDeviceGetCurrPcieLinkWidth(device),
            )
            most = (
                pynvml.nvmlDeviceGetMaxPcieLinkGeneration(device),
                pynvml.nvmlDeviceGetMaxPcieLinkWidth(device),
            )
            name, driver = pynvml.nvmlDeviceGetName(device), pynvml.nvmlSystemGetDriverVersion()
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return Finding("pcie", "warn", f"not known: {error}", "look at nvidia-smi")
    return pcie_finding(f"{name}, driver {driver}", now, most)


def pcie_finding(device: str, now: tuple[int, int], most: tuple[int, int]) -> Finding:
    """(generation, width) as they are now and at most. A link that idles may have a lower generation."""
    text = f"{device}: PCIe generation {now[0]} x{now[1]} now, {most[0]} x{most[1]} at most"
    if now[1] < most[1]:
        return Finding("pcie", "warn", text, "put the card into a slot with all of its lanes")
    return Finding("pcie", "ok", text)


def triton() -> Finding:
    try:
        return Finding("triton", "ok", version("triton"))
    except PackageNotFoundError:
        fix = "pip install 'sidestage[gpu]'"
        return Finding("triton", "warn", "is not installed, torch multiplies experts meanwhile", fix)


def page_locking() -> Finding:
    """What is known beforehand; the driver itself heeds no ulimit."""
    limit = pin_limit()
    if limit is None:
        return Finding("page-locking", "ok", "no limit is known")
    assert is_wsl()
    fix = "a store that does not fit is staged instead of pinned; give WSL more memory, or use Linux itself"
    return Finding("page-locking", "warn", f"below Windows about {format_size(limit)} at most", fix)


def measured(run: Callable[[], Facts] | None = None) -> Iterator[Finding]:
    """What a child process has found out about the device."""
    facts = (run or run_probe)()
    if "error" in facts:
        yield Finding("cuda link", "fail", str(facts["error"]), "look at nvidia-smi, and at dmesg")
        return
    yield link_finding(facts)
    if "kernels" in facts:
        yield Finding("cuda kernels", "ok", str(facts["kernels"]))


def link_finding(facts: Facts) -> Finding:
    """Speeds as `compute.link_probe` tells them."""
    chunks = facts["by_chunk"]
    assert isinstance(chunks, dict)
    by_chunk = ", ".join(f"{format_size(int(size))} {_speed(rate)}" for size, rate in chunks.items())
    best, pageable, locking = (_speed(facts[name]) for name in ("best", "pageable", "page_locking"))
    text = (
        f"{facts['name']}, CUDA {facts['cuda']}: {best} GB/s page-locked, {pageable} pageable, "
        f"page-locking {locking}; two chunks in flight: {by_chunk}"
    )
    if _number(facts["best"]) < _SLOW_LINK:
        return Finding("cuda link", "warn", text, "see whether the card has all of its lanes (nvidia-smi -q)")
    return Finding("cuda link", "ok", text)


def run_probe() -> Facts:
    """What `launch.doctor.cuda_probe` says, or {"error": why it does not}."""
    argv = [sys.executable, "-P", "-m", "launch.doctor.cuda_probe"]
    try:
        ended = subprocess.run(argv, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"nothing was measured within {_PROBE_TIMEOUT_S:g} s: the device stands still"}
    try:
        facts: Facts = json.loads(ended.stdout)
    except ValueError:
        lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
        return {"error": lines[-1]}
    return facts


def _speed(rate: object) -> str:
    return f"{_number(rate) / 1e9:.1f}"


def _number(value: object) -> float:
    assert isinstance(value, (int, float)), value
    return float(value)
