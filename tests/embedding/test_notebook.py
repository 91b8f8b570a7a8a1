"""An interrupted cell harms none that follows, and nobody outlives the kernel."""

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

NOTEBOOK = Path(__file__).with_name("notebook.py")
NUM_CELLS = 12
pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True, slots=True)
class Session:
    """`said`: the notebook's last line, "" if it failed; `problem`: what it wrote to stderr then."""

    said: str
    problem: str
    num_children: int
    num_left: int


@pytest.fixture(scope="module")
def session(store_4bit: Path) -> Session:
    """Interrupted cells, each followed by one that checks its tokens; then a kill in the middle of a cell."""
    argv = [sys.executable, "-P", str(NOTEBOOK), str(store_4bit), str(NUM_CELLS), "7"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as kernel:
        assert kernel.stdout is not None
        said = kernel.stdout.readline()
        children = psutil.Process(kernel.pid).children()
        kernel.send_signal(signal.SIGKILL)
        problem = kernel.communicate()[1]
    left = psutil.wait_procs(children, timeout=10)[1]
    return Session(said, problem, len(children), len(left))


def test_after_an_interrupted_generate_the_next_one_gives_the_right_tokens(session: Session) -> None:
    assert session.said, session.problem
    assert int(session.said.split()[0]) >= NUM_CELLS - 3


def test_a_kernel_that_dies_in_the_middle_of_a_cell_leaves_nobody(session: Session) -> None:
    assert session.num_children == 1
    assert session.num_left == 0
