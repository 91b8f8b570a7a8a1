"""What every test stands on: one thread, no network, folders of its own, and a look for leftovers.

`store_4bit` and `store_none` are stores of the shipped model, built once per session.
"""

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

PRIVATE = Path(tempfile.mkdtemp(prefix="sst-"))
os.environ["XDG_RUNTIME_DIR"] = str(PRIVATE / "run")
os.environ["XDG_CACHE_HOME"] = str(PRIVATE / "cache")
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(PRIVATE / "hypothesis"))
(PRIVATE / "run").mkdir(mode=0o700)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it puts in the background deaf to Ctrl-C, and children inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _tidy_up(owner: int) -> None:
    """A fork that ends must not take its parent's folders along."""
    if os.getpid() == owner:
        shutil.rmtree(PRIVATE, ignore_errors=True)


atexit.register(_tidy_up, os.getpid())

import pytest  # noqa: E402
from leftovers import Leftovers  # noqa: E402

SHIPPED_MODEL = Path(__file__).parents[1] / "launch" / "model"


def pytest_configure(config: pytest.Config) -> None:
    """Tests mean the CPU unless they ask for the device: `-m gpu`."""
    if "gpu" not in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Fail a test after which a process, a socket folder or an arena of ours is still there."""
    leftovers = Leftovers(PRIVATE / "run")
    before = leftovers.look()
    yield
    left = leftovers.wait_until_only(before, timeout_s=5)
    assert not left, f"left behind: {', '.join(sorted(left))}"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch computes in one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """A folder as a loader makes it, for its sockets."""
    from protocol.folder import create_folder, remove_folder

    folder = create_folder()
    yield folder
    remove_folder(folder)


@pytest.fixture(scope="session")
def shipped_model() -> Path:
    """The folder of the shipped checkpoint."""
    return SHIPPED_MODEL


@pytest.fixture(scope="session")
def store_4bit() -> Path:
    """A store of the shipped model, HQQ 4 bit in groups of 64, optimised."""
    return _store("4")


@pytest.fixture(scope="session")
def store_none() -> Path:
    """A store of the shipped model with its experts as they are."""
    return _store("none")


def _store(bits: str) -> Path:
    from loader.convert import convert

    folder = PRIVATE / f"store-{bits}"
    convert(str(SHIPPED_MODEL), folder, bits=bits, group=64)
    return folder
