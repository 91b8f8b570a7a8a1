"""`sidestage --help` costs what a newcomer's first impression may cost."""

import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "transformers", "numpy", "zmq", "hqq", "safetensors")

PROBE = f"""
import sys
from launch.cli import main
sys.argv = ["sidestage", *sys.argv[1:]]
try:
    main()
except SystemExit as ended:
    print("loaded:", *(name for name in {HEAVY!r} if name in sys.modules))
    print("exit:", ended.code or 0)
"""


@pytest.mark.parametrize(
    "command", [(), ("run",), ("serve",), ("plan",), ("top",), ("convert",), ("loader",), ("doctor",)]
)
def test_help_imports_nothing_heavy(command: tuple[str, ...]) -> None:
    ended = subprocess.run(
        [sys.executable, "-P", "-c", PROBE, *command, "--help"], capture_output=True, text=True, check=True
    )
    assert "Usage: sidestage" in ended.stdout
    assert "loaded:\nexit: 0\n" in ended.stdout


def test_the_loader_service_imports_no_torch() -> None:
    probe = "import sys, loader.service, loader.__main__; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-P", "-c", probe], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"


def test_the_supervisor_imports_no_torch() -> None:
    modules = "launch.run, launch.server.serve, launch.standalone_loader, launch.doctor.examination"
    probe = f"import sys, {modules}; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-P", "-c", probe], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"


@pytest.mark.bench
def test_help_takes_less_than_half_a_second() -> None:
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-P", "-c", PROBE, "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
    median = sorted(seconds)[3]
    print(f"\nsidestage --help: {median * 1000:.0f} ms (median of 7)")
    assert median < 0.5
