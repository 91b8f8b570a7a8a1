"""The recorder: what the host launches, kept as a CUDA graph and launched again in one go.

Owns the rules of capture: a stream of its own, memory that only recordings share, and what is to be
put right when a capture fails. Knows no model.
"""

import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Generic, Protocol, TextIO, TypeVar

import torch

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_WAITS = "called a synchronizing CUDA operation"


class Recording(Protocol[T_co]):
    """Work that has been recorded."""

    def replay(self) -> T_co:
        """Launch it. The results are the same tensors each time, until any recording is replayed again."""


class Recorder(Protocol):
    """`device`: where all that is recorded has to be."""

    device: torch.device

    def rehearse(self, work: Callable[[], T]) -> tuple[T, str]:
        """Do `work`, and say what in it cannot be recorded: "" for nothing."""

    def record(self, work: Callable[[], T]) -> Recording[T]:
        """Nothing is run: `work` is called, and what it would launch is kept. What it raises is raised."""


class CudaRecording(Generic[T]):
    def __init__(self, graph: torch.cuda.CUDAGraph, results: T, take_turn: Callable[[], None]) -> None:
        self._graph = graph
        self._results = results
        self._take_turn = take_turn

    def replay(self) -> T:
        """On the caller's current stream."""
        self._take_turn()
        self._graph.replay()
        return self._results


class CudaRecorder:
    """Called from one thread at a time, which need not be the same one.

    Recordings share their memory: they may be dropped in any order, and none runs while another does. The
    pool outlives them, for a pool that no graph uses any more cannot be recorded into again.
    """

    def __init__(self, device: torch.device) -> None:
        self._index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", self._index)
        with torch.cuda.device(self.device):
            self._side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.MemPool()
        self._last: torch.cuda.Stream | None = None
        self._failed: list[torch.cuda.CUDAGraph] = []

    def rehearse(self, work: Callable[[], T]) -> tuple[T, str]:
        with _waits_heard() as heard:
            done = work()
        return done, f"the model waits for the device in {heard[0]}" if heard else ""

    def record(self, work: Callable[[], T]) -> CudaRecording[T]:
        """Only this thread is held to the rules of capture: the link's copies, and asks, meanwhile."""
        graph = torch.cuda.CUDAGraph()
        num_users = self._pool.use_count()
        with torch.cuda.stream(self._side), _no_collection():
            # This thread's, and its workspace: made here, so that neither is made while recording.
            torch.cuda.current_blas_handle()  # type: ignore[no-untyped-call]
            try:
                graph.capture_begin(self._pool.id, capture_error_mode="thread_local")  # type: ignore[arg-type]
                results = work()
                graph.capture_end()
            except BaseException:
                self._clear_away(graph, num_users)
                raise
        return CudaRecording(graph, results, self._take_turn)

    def _take_turn(self) -> None:
        """A caller who has changed streams: what was replayed on the one before comes first."""
        current = torch.cuda.current_stream(self.device)
        if self._last is not None and current != self._last:
            current.wait_stream(self._last)
        self._last = current

    def _clear_away(self, graph: torch.cuda.CUDAGraph, num_users: int) -> None:
        """After a failed capture the stream, the allocator and the generator are as they were before.

        Ending a capture that was invalidated fails, and then torch leaves some of these behind, which
        depends on its version: the allocator in the capture, the generator too, the pool a user too many.
        """
        with suppress(RuntimeError):
            graph.capture_end()
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(self._index, self._pool.id)
        graph.reset()
        while self._pool.use_count() > num_users:
            torch._C._cuda_releasePool(self._index, self._pool.id)
        self._failed.append(graph)  # the allocator of page-locked memory may go on asking it
        with suppress(RuntimeError):
            whole = torch.cuda.CUDAGraph()
            whole.capture_begin(capture_error_mode="thread_local")
            torch.zeros(1, device=self.device)
            whole.capture_end()


@contextmanager
def _no_collection() -> Iterator[None]:
    """What the collector finds may hold device memory, and giving that back is no part of a recording."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _waits_heard() -> Iterator[list[str]]:
    """Where this thread waits for the device, as torch tells it: "file:line"."""
    heard: list[str] = []
    own = threading.get_ident()
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        show = warnings.showwarning
        warnings.filterwarnings("always", message=_WAITS)
        warnings.filterwarnings("ignore", message="Synchronization debug mode")

        def listen(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if _WAITS not in str(message):
                show(message, category, filename, lineno, file, line)
            elif threading.get_ident() == own:
                heard.append(f"{filename}:{lineno}")

        warnings.showwarning = listen
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield heard
        finally:
            torch.cuda.set_sync_debug_mode(mode)
