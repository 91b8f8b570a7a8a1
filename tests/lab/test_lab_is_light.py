"""The laboratory's commands import what they need, and no more."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compute.trace import Trace
from compute.trace_file import write

PROBE = """
import sys
from launch.cli import main
heavy, sys.argv = sys.argv[1].split(","), ["sidestage", *sys.argv[2:]]
try:
    main()
except SystemExit as ended:
    print("loaded:", *(name for name in heavy if name in sys.modules))
    print("exit:", ended.code or 0)
"""


def loaded(heavy: str, *arguments: str | Path) -> str:
    """The last two lines of `sidestage ARGUMENTS`: which of `heavy` were imported, and the exit code."""
    argv = [sys.executable, "-P", "-c", PROBE, heavy, *map(str, arguments)]
    ended = subprocess.run(argv, capture_output=True, text=True, check=True)
    return "\n".join(ended.stdout.splitlines()[-2:])


@pytest.mark.parametrize("command", ["trace record", "trace info", "simulate"])
def test_help_imports_nothing_heavy(command: str) -> None:
    heavy = "torch,transformers,numpy,zmq,hqq,safetensors,matplotlib,rich.table"
    assert loaded(heavy, *command.split(), "--help") == "loaded:\nexit: 0"


def test_a_replay_imports_no_torch(tmp_path: Path) -> None:
    experts = np.tile(np.array([[[0, 1]], [[2, 3]]], dtype=np.int16), (5, 1, 1))
    zeros = np.zeros(10, np.int32)
    write(tmp_path / "t.npz", Trace(experts, zeros.astype(np.uint8), zeros, 4))
    asked = ("--capacity", "0.5", "--jobs", "1", "--predictor", "st-moe")
    assert loaded("torch,transformers", "simulate", tmp_path / "t.npz", *asked) == "loaded:\nexit: 0"
