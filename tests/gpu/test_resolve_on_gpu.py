"""Words that host and device share, on a CUDA device: the double's, and seen by both while it runs.

Frames and words are page-locked by the real driver; kernels reach them where they lie.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from support.host_resolver import HostResolver
from support.layer_steps import experts_module, gated_tensors, make_step, pool_of, run_step
from support.resolver_stories import Machine, Story, plain_words, stories
from torch import Tensor

from compute.beside.mailbox import Mailbox, Posted
from compute.beside.resolver import NUM_STATE_WORDS, STEP, Resolver
from compute.beside.words import IN_PLACE, IN_SLOT, LANDED, PUSHED, RESIDENT, DeviceWords, Extent, SharedWords
from compute.transports.cuda_driver import CudaDriver
from compute.transports.locked_memory import LockedMemory

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
PAGE = 4096


@pytest.fixture
def resolver() -> Resolver:
    from compute.kernels.triton_resolve import TritonResolver

    return TritonResolver()


@contextmanager
def shared_words(driver: CudaDriver, extent: Extent) -> Iterator[DeviceWords]:
    shared = SharedWords(driver, extent)
    try:
        yield shared.words
    finally:
        torch.cuda.synchronize()
        shared.close()


@contextmanager
def locked_pages(driver: CudaDriver, num_bytes: int) -> Iterator[Tensor]:
    """uint8, random, page-locked."""
    memory = LockedMemory(driver, num_bytes)
    memory.bytes[:] = np.random.default_rng(1).integers(0, 256, num_bytes, np.uint8)
    try:
        yield torch.from_numpy(memory.bytes)
    finally:
        torch.cuda.synchronize()
        memory.close()


def numbers(*values: int) -> Tensor:
    return torch.tensor(values, device=DEVICE)


def wait_for(mailbox: Mailbox, step: int, num_rows: int) -> Posted:
    """Nothing here waits for the device itself."""
    until_s = time.monotonic() + 20
    while time.monotonic() < until_s:
        if posted := mailbox.read(step, num_rows, 0):
            return posted
    raise AssertionError(f"step {step} was not posted")


# --- words ----------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, derandomize=True)
@given(story=stories())
def test_every_word_is_the_doubles(story: Story) -> None:
    from compute.kernels.triton_resolve import TritonResolver

    with shared_words(CudaDriver(), story.extent) as words:
        device = Machine(story, words, "cuda")
        double = Machine(story, plain_words(story.extent))
        for turn in story.turns:
            device.play(TritonResolver(), turn)
            double.play(HostResolver(), turn)
            torch.cuda.synchronize()
            for found, expected in zip(device.memory(), double.memory(), strict=True):
                assert torch.equal(found, expected)


def test_a_running_graph_sees_what_the_host_writes_and_the_host_what_it_posts(
    driver: CudaDriver, resolver: Resolver
) -> None:
    """Two steps in one graph, with time between them: the host answers the first, the second has heard."""
    frame, slot = 2**46, 2**40 + IN_SLOT
    with shared_words(driver, Extent(num_keys=2, num_open=4, num_cells=4, width=2)) as words:
        mailbox, state = Mailbox(words), numbers(*[0] * NUM_STATE_WORDS)
        index, (addresses, sources) = numbers(0)[None], torch.zeros(2, 1, dtype=torch.int64, device=DEVICE)

        def launch() -> None:
            resolver.resolve(words, state, 0, 1, index, None, addresses, sources)
            torch.cuda._sleep(100_000_000)
            resolver.resolve(words, state, 1, 1, index, None, addresses, sources)

        words.table.fill_(frame)
        launch()  # compiles
        torch.cuda.synchronize()
        graph = recorded(launch)
        for turn in range(1, 20):
            words.table[1] = frame
            state[STEP].fill_(2 * turn)
            graph.replay()
            assert wait_for(mailbox, 2 * turn, 1).found == [(0, IN_PLACE)]
            words.table[1] = slot
            assert wait_for(mailbox, 2 * turn + 1, 1).found == [(0, RESIDENT)], f"replay {turn}"
            torch.cuda.synchronize()
            assert addresses.item() == slot - IN_SLOT


def test_an_offered_slot_is_taken_by_the_step_after_the_one_that_saw_it(
    driver: CudaDriver, resolver: Resolver
) -> None:
    with shared_words(driver, Extent(num_keys=1, num_open=2, num_cells=8, width=2)) as words:
        mailbox, state = Mailbox(words), numbers(*[0] * NUM_STATE_WORDS)
        index, (addresses, sources) = numbers(0)[None], torch.zeros(2, 1, dtype=torch.int64, device=DEVICE)
        words.table[0], words.opened[0], words.control[PUSHED] = 2**46, 2**40, 1
        found = []
        for step in range(1, 4):
            state[STEP].fill_(step)
            resolver.resolve(words, state, 0, 1, index, None, addresses, sources)
            found.append(wait_for(mailbox, step, 1).found[0][1])
            torch.cuda.synchronize()
        assert found == [IN_PLACE, LANDED, IN_PLACE]


# --- bytes ----------------------------------------------------------------------------------------


def test_frames_are_gathered_by_the_hosts_own_addresses(driver: CudaDriver, resolver: Resolver) -> None:
    assert driver.reads_in_place()
    size = 3 * PAGE * 17
    with locked_pages(driver, 4 * size) as frames:
        slots = torch.zeros(4, size, dtype=torch.uint8, device=DEVICE)
        addresses = numbers(slots[2].data_ptr(), slots[1].data_ptr(), slots[0].data_ptr())
        sources = numbers(frames.data_ptr() + size, 0, frames.data_ptr() + 3 * size)
        resolver.gather(addresses, sources, size)
        expected = torch.zeros_like(slots)
        expected[2], expected[0] = frames[size : 2 * size], frames[3 * size :]
        assert torch.equal(slots, expected)


@pytest.mark.parametrize("num_tokens", [1, 4])
@pytest.mark.parametrize("is_recorded", [False, True])
def test_misses_read_in_place_or_landed_change_no_bit(
    is_recorded: bool, num_tokens: int, driver: CudaDriver, resolver: Resolver
) -> None:
    from compute.kernels.triton_kernel import TritonKernel

    made = make_step(
        gated_tensors(512, 256), "4", num_experts=6, num_tokens=num_tokens, top_k=4, dtype=torch.bfloat16
    )
    step, stride = made.to(DEVICE), made.layout.stride
    kernel, module = TritonKernel(step.layout), experts_module()
    pool, in_pool = pool_of(step, range(6), 6)
    whole = run_step(kernel, module, step, in_pool)
    slots, in_slots = pool_of(step, [7, 3], 8)  # experts 0 and 1
    num_rows = step.index.numel()
    with (
        locked_pages(driver, 6 * stride) as frames,
        shared_words(driver, Extent(num_keys=6, num_open=2, num_cells=9, width=1 + num_rows)) as words,
    ):
        frames.view(6, stride).copy_(torch.stack(made.blobs))
        words.table.copy_(torch.arange(6) * stride + frames.data_ptr())
        words.table[:2] = torch.tensor(in_slots) | IN_SLOT
        words.opened.copy_(torch.tensor([slots[0].data_ptr(), slots[5].data_ptr()]))
        words.control[PUSHED] = 2
        mailbox, state, out = Mailbox(words), numbers(*[0] * NUM_STATE_WORDS), torch.empty_like(whole)
        addresses, sources = torch.zeros(2, num_rows, dtype=torch.int64, device=DEVICE)

        def launch() -> None:
            resolver.resolve(words, state, 0, 6, step.index, None, addresses, sources)
            resolver.gather(addresses, sources, stride)
            with torch.no_grad():
                kernel.run_at(module, addresses, step.hidden, step.weights, out)

        replay = launch
        if is_recorded:
            launch()
            torch.cuda.synchronize()
            state.zero_()
            replay = recorded(launch).replay
        for turn, (num_in_place, num_landed) in enumerate(expected_misses(step.index), start=1):
            state[STEP].fill_(turn)
            out.fill_(7)
            replay()
            found = [how for _, how in wait_for(mailbox, turn, num_rows).found]
            assert (found.count(IN_PLACE), found.count(LANDED)) == (num_in_place, num_landed)
            torch.cuda.synchronize()
            assert torch.equal(out, whole)
    del pool


def expected_misses(index: Tensor) -> list[tuple[int, int]]:
    """(read in place, landed) of three steps alike, of which the host follows none: two slots are open."""
    num_missing = len({expert for expert in index.flatten().tolist() if expert > 1})
    num_landed = min(num_missing, 2)
    return [(num_missing, 0), (num_missing - num_landed, num_landed), (num_missing, 0)]


def recorded(launch: Callable[[], None]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    return graph


# --- the link -------------------------------------------------------------------------------------


@pytest.mark.bench
@pytest.mark.parametrize("blob_bytes", [2_654_208, 13_996_032])
@pytest.mark.parametrize("num_missing", [1, 4, 8])
def test_speed_of_gather(num_missing: int, blob_bytes: int, driver: CudaDriver, resolver: Resolver) -> None:
    """`pytest -m "gpu and bench" -s` prints it beside the copy engine's, out of the same memory."""
    size, num_rows = -(-blob_bytes // PAGE) * PAGE, 8
    with locked_pages(driver, num_rows * size) as frames:
        slots = torch.zeros(num_rows, size, dtype=torch.uint8, device=DEVICE)
        rows = torch.arange(num_rows, device=DEVICE)
        addresses = rows * size + slots.data_ptr()
        sources = torch.where(rows < num_missing, rows * size + frames.data_ptr(), 0)
        nothing = torch.zeros_like(sources)
        eager_ms = milliseconds(lambda: resolver.gather(addresses, sources, size))
        graph_ms = milliseconds(recorded(lambda: resolver.gather(addresses, sources, size)).replay)
        idle_ms = milliseconds(recorded(lambda: resolver.gather(addresses, nothing, size)).replay)
        assert torch.equal(slots[:num_missing].cpu(), frames.view(num_rows, size)[:num_missing])
        copied_ms = copy_milliseconds(driver, slots, frames, num_missing * size)
    times = {"gathered": eager_ms, "in a graph": graph_ms, "copied": copied_ms}
    speeds = ", ".join(f"{what} {num_missing * size / ms / 1e6:.1f} GB/s" for what, ms in times.items())
    print(f"\n{num_missing} times {size} bytes: {speeds}; nothing to gather: {idle_ms * 1e3:.1f} us")


@pytest.mark.bench
def test_speed_of_resolve(driver: CudaDriver, resolver: Resolver) -> None:
    with shared_words(driver, Extent(num_keys=128, num_open=16, num_cells=64, width=32)) as words:
        state, index, predicted = (
            numbers(*[0] * NUM_STATE_WORDS),
            numbers(*range(8))[None],
            numbers(*range(16)),
        )
        addresses, sources = torch.zeros(2, 8, dtype=torch.int64, device=DEVICE)

        def launch() -> None:
            for _ in range(48):
                resolver.resolve(words, state, 0, 128, index, predicted, addresses, sources)

        launch()
        torch.cuda.synchronize()
        replay_ms, eager_ms = milliseconds(recorded(launch).replay), milliseconds(launch)
    print(f"\na resolve: {replay_ms / 48 * 1e3:.1f} us in a graph, {eager_ms / 48 * 1e3:.1f} us without one")


def milliseconds(launch: Callable[[], object], times: int = 20) -> float:
    """The median of the device's own time."""
    launch()
    taken = []
    for _ in range(times):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        launch()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end))
    return float(np.median(taken))


def copy_milliseconds(
    driver: CudaDriver, slots: Tensor, frames: Tensor, num_bytes: int, times: int = 20
) -> float:
    taken = []
    for _ in range(times):
        start = driver.mark_copies()
        driver.copy(slots.data_ptr(), frames.data_ptr(), num_bytes)
        end = driver.mark_copies()
        end.event.synchronize()
        taken.append(driver.elapsed_ns(start, end) / 1e6)
    return float(np.median(taken))
