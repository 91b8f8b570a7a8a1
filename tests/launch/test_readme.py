"""The README's commands do what they say, in a folder of a newcomer's."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)


def _in_a_clone(tmp_path: Path) -> Path:
    """A folder in which the README's relative paths mean what they mean in a clone."""
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "model").symlink_to(ROOT / "launch" / "model")
    return tmp_path


def _run(argv: list[str], folder: Path) -> str:
    """Run in `folder`, with the environment's commands on the path; what it wrote to stdout."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        argv,
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_commands_of_the_readme_work_one_after_the_other(tmp_path: Path) -> None:
    folder = _in_a_clone(tmp_path)
    _run(["bash", "-euo", "pipefail", "-c", "\n".join(_blocks("sh"))], folder)
    assert (folder / "result.json").stat().st_size > 0
    assert (folder / "trace.json").stat().st_size > 0
    assert not os.path.lexists(folder / "endpoint")


@pytest.mark.slow
def test_the_python_of_the_readme_works(tmp_path: Path) -> None:
    for block in _blocks("python"):
        assert _run([sys.executable, "-c", block], _in_a_clone(tmp_path)).count("\n") >= 2


def test_the_files_that_the_readme_links_to_are_there() -> None:
    for page in (README, *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_make_has_the_targets_that_the_readme_and_the_contract_name() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("run", "serve", "test", "check", "stress", "bench", "clean"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
