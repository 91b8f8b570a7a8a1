"""A loader of one's own: started, restarted on the same arena, and gone without a trace."""

import os
import signal
import time
from pathlib import Path

import pytest
from support.synthetic_store import make_store

from compute.loader_process import start_loader
from protocol.errors import MemoryBudgetError, SidestageError, StoreError
from protocol.manifest import Manifest


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make_store(tmp_path / "store", num_layers=2, num_experts=8, top_k=2, stride_kib=16)
    return tmp_path / "store"


def test_it_is_ready_on_return_and_leaves_nothing(store: Path) -> None:
    with start_loader(store, num_frames=4) as loader:
        assert loader.is_alive and Path(loader.endpoint).is_socket()
        assert loader.store == Manifest.read(store).fingerprint
        assert loader.folder.stat().st_mode & 0o777 == 0o700
        pid = loader.pid
    assert not loader.folder.exists()
    assert not Path("/proc", str(pid)).exists()


def test_a_restart_keeps_the_endpoint_and_the_arena(store: Path) -> None:
    with start_loader(store, num_frames=4) as loader:
        before = (loader.pid, loader.endpoint, loader.turns)
        os.kill(loader.pid, signal.SIGKILL)
        loader.restart()
        assert loader.is_alive and loader.num_restarts == 1
        assert loader.pid != before[0] and loader.endpoint == before[1]
        assert loader.turns >= before[2]


def test_a_loader_that_stopped_in_order_can_be_restarted(store: Path) -> None:
    with start_loader(store, num_frames=4) as loader:
        os.kill(loader.pid, signal.SIGTERM)
        while loader.is_alive:
            time.sleep(0.01)
        assert not loader.folder.exists()
        loader.restart()
        assert Path(loader.endpoint).is_socket()


def test_a_hung_loader_is_restarted_too(store: Path) -> None:
    with start_loader(store, num_frames=4) as loader:
        os.kill(loader.pid, signal.SIGSTOP)
        loader.restart()
        assert loader.is_alive


def test_closing_twice_is_closing_once(store: Path) -> None:
    loader = start_loader(store, num_frames=4)
    loader.close()
    loader.close()
    with pytest.raises(RuntimeError, match="only an open loader"):
        loader.restart()


def test_a_fork_leaves_its_parents_loader_alone(store: Path) -> None:
    with start_loader(store, num_frames=4) as loader:
        child = os.fork()
        if not child:
            loader.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert loader.is_alive and loader.folder.exists()


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a store"):
        start_loader(tmp_path, num_frames=4)


def test_a_truncated_store_is_refused_with_the_loaders_own_sentence(store: Path) -> None:
    shard = store / Manifest.read(store).shards[0].file
    os.truncate(shard, shard.stat().st_size - 4096)
    with pytest.raises(SidestageError, match="truncated or foreign"):
        start_loader(store, num_frames=4)


def test_an_arena_beyond_the_machines_memory_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "store"
    make_store(store, num_layers=1, num_experts=2, top_k=1, stride_kib=4096)
    with pytest.raises(MemoryBudgetError, match="--ram"):
        start_loader(store, num_frames=2**20 - 1, num_clients=1)


def test_a_loader_that_cannot_be_started_again_says_why(store: Path) -> None:
    with start_loader(store, num_frames=4) as loader:
        (store / "manifest.json").rename(store / "elsewhere.json")
        with pytest.raises(SidestageError, match="not a store"):
            loader.restart()
        assert not loader.is_alive
        (store / "elsewhere.json").rename(store / "manifest.json")
        loader.restart()
        assert loader.is_alive
