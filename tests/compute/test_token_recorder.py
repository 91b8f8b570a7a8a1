"""The recorder's rules of capture, with torch.cuda's part played: what is called, and in which order."""

import gc
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
import torch

from compute.beside.token_recorder import CudaRecorder

POOL = (0, 7)


@dataclass
class FakeCuda:
    """One device; notes what is done to it. `is_invalid`: the capture under way cannot be ended well."""

    done: list[str] = field(default_factory=list)
    pool_users: int = 1
    is_capturing: bool = False
    allocating_to: set[object] = field(default_factory=set)
    is_invalid: bool = False
    ends_allocation_itself: bool = False
    stream: str = "main"

    def end_allocation(self, index: int, pool: tuple[int, int]) -> None:
        assert (index, pool) == (0, POOL)
        if pool not in self.allocating_to:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.allocating_to.remove(pool)
        self.done.append("end allocation")

    def release_pool(self, index: int, pool: tuple[int, int]) -> None:
        self.pool_users -= 1
        self.done.append("release")


class FakeGraph:
    cuda: FakeCuda

    def __init__(self) -> None:
        self.has_ended = self.uses_pool = self.was_reset = False

    def capture_begin(self, pool: tuple[int, int] | None = None, *, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        assert not self.cuda.is_capturing, "one capture at a time"
        self.pool, self.uses_pool = pool or id(self), pool == POOL
        self.cuda.pool_users += self.uses_pool
        self.cuda.is_capturing = True
        self.cuda.allocating_to.add(self.pool)
        self.cuda.done.append("begin" if pool else "begin in memory of its own")

    def capture_end(self) -> None:
        if not self.cuda.is_capturing:
            raise RuntimeError("capture_end() called before capture_begin()")
        self.cuda.is_capturing = False
        is_good, self.cuda.is_invalid = not self.cuda.is_invalid, False
        if is_good or self.cuda.ends_allocation_itself:
            self.cuda.allocating_to.remove(self.pool)
        if not is_good:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.has_ended = True
        self.cuda.done.append("end")

    def replay(self) -> None:
        self.cuda.done.append("replay")

    def reset(self) -> None:
        if self.has_ended and self.uses_pool:
            self.cuda.pool_users -= 1
        self.has_ended = False
        self.was_reset = True


class FakePool:
    cuda: FakeCuda
    id = POOL

    def use_count(self) -> int:
        return self.cuda.pool_users


@dataclass
class FakeStream:
    cuda: FakeCuda
    name: str = "side"

    def wait_stream(self, other: "FakeStream") -> None:
        self.cuda.done.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    cuda = FakeGraph.cuda = FakePool.cuda = FakeCuda()
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream(cuda))
    monkeypatch.setattr(torch.cuda, "MemPool", FakePool)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "current_blas_handle", lambda: cuda.done.append("handle"))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", cuda.end_allocation, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", cuda.release_pool, raising=False)
    return cuda


def on_fake(cuda: FakeCuda) -> CudaRecorder:
    recorder = CudaRecorder(torch.device("cuda"))
    assert recorder.device == torch.device("cuda", 0)
    recorder.device = torch.device("cpu")
    return recorder


def test_work_is_captured_into_the_shared_memory_and_replayed(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = FakeStream(cuda, "main")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)

    def work() -> str:
        cuda.done.append("work" if not gc.isenabled() else "work, and the collector may run")
        return "results"

    recording = on_fake(cuda).record(work)
    assert cuda.done == ["handle", "begin", "work", "end"]
    assert gc.isenabled()
    assert [recording.replay(), recording.replay()] == ["results", "results"]
    assert cuda.done[4:] == ["replay", "replay"]


def test_a_caller_who_changes_streams_is_followed(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = on_fake(cuda)
    first, second = recorder.record(lambda: 1), recorder.record(lambda: 2)
    cuda.done.clear()
    for recording, name in ((first, "a"), (second, "a"), (first, "b")):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device, name=name: FakeStream(cuda, name))
        recording.replay()
    assert cuda.done == ["replay", "replay", "b waits for a", "replay"]


def refused(cuda: FakeCuda) -> None:
    raise RuntimeError("no such kernel")


def invalidated(cuda: FakeCuda) -> None:
    cuda.is_invalid = True
    raise RuntimeError("operation not permitted when stream is capturing")


def invalidated_unnoticed(cuda: FakeCuda) -> None:
    cuda.is_invalid = True


def interrupted(cuda: FakeCuda) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("ends_allocation_itself", [False, True], ids=["torch 2.10", "torch 2.12"])
@pytest.mark.parametrize("work", [refused, invalidated, invalidated_unnoticed, interrupted])
def test_a_failed_capture_leaves_nothing_behind(
    cuda: FakeCuda, work: Callable[[FakeCuda], None], ends_allocation_itself: bool
) -> None:
    cuda.ends_allocation_itself = ends_allocation_itself
    recorder = on_fake(cuda)
    with pytest.raises(KeyboardInterrupt if work is interrupted else RuntimeError) as caught:
        recorder.record(lambda: work(cuda))
    if work is refused:
        assert str(caught.value) == "no such kernel", "what went wrong first is what is raised"
    assert not cuda.is_capturing and not cuda.allocating_to
    assert cuda.pool_users == 1
    assert [graph.was_reset for graph in recorder._failed] == [True], "so that it releases nothing later"
    assert gc.isenabled()
    assert cuda.done[-2:] == ["begin in memory of its own", "end"], "the generator is out of the capture"
    recorder.record(lambda: "again")
    assert cuda.done[-2:] == ["begin", "end"]


def test_where_the_host_waits_for_the_device_is_heard(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[object] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    recorder = on_fake(cuda)

    def work() -> str:
        warnings.warn("something else", stacklevel=1)
        if len(modes) > 2:
            warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
        return "done"

    with pytest.warns(UserWarning, match="something else"):
        assert recorder.rehearse(work) == ("done", "")
    with pytest.warns(UserWarning, match="something else") as shown:
        done, objection = recorder.rehearse(work)
    assert done == "done"
    assert objection.startswith("the model waits for the device in ") and __file__ in objection
    assert modes == ["warn", 0, "warn", 0]
    assert len(shown) == 1, "it is told, not shown"


def test_a_warning_of_torchs_own_is_heard(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compute.beside.token_recorder._WAITS", "Test message for TORCH_WARN")
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    _, objection = on_fake(cuda).rehearse(torch._C._warn)
    assert "waits for the device in" in objection
