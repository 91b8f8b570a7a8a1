"""The programs of docs/embedding.md run as they stand there, in a folder of a newcomer's."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compute.cache_folder import Quantization, cached_store

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "embedding.md"
#: A checkpoint is converted once, and each program imports torch.
pytestmark = pytest.mark.timeout(300)
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(autouse=True, scope="module")
def converted(store_4bit: Path) -> None:
    """What the first program would do, and would leave for the others: minutes for a real model."""
    place = cached_store(ROOT / "launch" / "model", Quantization())
    if not place.exists():
        shutil.copytree(store_4bit, place)


def _run(number: int, folder: Path) -> str:
    """What the page's program writes, run from a folder that looks like a clone."""
    (folder / "launch").mkdir()
    (folder / "launch" / "model").symlink_to(ROOT / "launch" / "model")
    program = folder / "program.py"
    program.write_text(PROGRAMS[number])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        [sys.executable, "-P", program.name],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stdout


def test_there_are_three_programs() -> None:
    assert len(PROGRAMS) == 3


def test_a_script_streams_and_reports(tmp_path: Path) -> None:
    written = _run(0, tmp_path)
    assert written.startswith("Once upon a time there was a king who")
    assert re.search(r"[1-9]\d* of [1-9]\d* experts were there", written)


def test_two_processes_share_a_loader(tmp_path: Path) -> None:
    written = _run(1, tmp_path)
    assert "There was once a wolf who" in written
    assert "In a house by the sea" in written


def test_a_pipeline_takes_the_model(tmp_path: Path) -> None:
    written = _run(2, tmp_path)
    assert written.index("The king said") < written.index("The wolf said")


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_the_programs_are_as_tidy_as_our_own(number: int) -> None:
    ruff = [str(Path(sys.executable).with_name("ruff")), "check", "--isolated", "--line-length", "110", "-"]
    ended = subprocess.run(ruff, input=PROGRAMS[number], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
