"""Launches go through triton's own C code, whose arguments a compilation alone does not show."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import hollow_cuda

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or shutil.which("cc") is None,
    reason="triton is not installed, or there is no C compiler",
)


def test_every_kernel_is_launched_by_tritons_own_launcher(tmp_path: Path) -> None:
    hollow_cuda.build(tmp_path)
    others = os.environ.get("LD_LIBRARY_PATH", "")
    env = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{tmp_path}:{others}",
        "TRITON_LIBCUDA_PATH": str(tmp_path),
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
    }
    ended = subprocess.run(
        [sys.executable, hollow_cuda.__file__, str(tmp_path)],
        env=env, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-4000:]
    decoded, prompted = ["decode_up", "decode_down"] * 2, ["block_up", "block_down"] * 2
    found = [line.split()[0] for line in ended.stdout.splitlines()]
    assert found == [*decoded, *prompted, *["resolve_rows", "copy_parts"] * 2]
    assert ended.stdout.splitlines()[-1] == "copy_parts 2,2,1 128"
