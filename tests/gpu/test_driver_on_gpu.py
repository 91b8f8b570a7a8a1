"""The real driver: bytes, marks, page-locks, and what it says when it refuses."""

import mmap
import threading
import time

import numpy as np
import numpy.typing as npt
import pytest
import torch

from compute.transports.cuda_driver import CudaDriver
from compute.transports.driver import DriverError, Event

pytestmark = pytest.mark.gpu

NUM_BYTES = 8 * 2**20


def host_memory(num_bytes: int = NUM_BYTES) -> npt.NDArray[np.uint8]:
    memory = np.frombuffer(mmap.mmap(-1, num_bytes), np.uint8)
    memory[:] = np.arange(num_bytes) % 251
    return memory


def wait_for(event: Event) -> None:
    until = time.monotonic() + 20
    while not event.is_done():
        assert time.monotonic() < until, "the device stands still"


def test_bytes_arrive_whole_out_of_page_locked_and_pageable_memory(driver: CudaDriver) -> None:
    memory = host_memory()
    for locks in (False, True):
        if locks:
            driver.page_lock(memory.ctypes.data, NUM_BYTES)
        target = torch.zeros(NUM_BYTES, dtype=torch.uint8, device=driver.device)
        driver.hold_copies(driver.mark_uses())
        driver.copy(target.data_ptr(), memory.ctypes.data, NUM_BYTES)
        wait_for(driver.mark_copies())
        assert np.array_equal(target.cpu().numpy(), memory)
    driver.page_unlock(memory.ctypes.data)


def test_a_copy_is_put_in_line_at_once_and_takes_the_devices_time(driver: CudaDriver) -> None:
    memory = host_memory(64 * 2**20)
    driver.page_lock(memory.ctypes.data, len(memory))
    target = torch.empty(len(memory), dtype=torch.uint8, device=driver.device)
    start = driver.mark_copies()
    driver.copy(target.data_ptr(), memory.ctypes.data, len(memory))
    end = driver.mark_copies()
    assert not end.is_done(), "64 MiB crossed while nobody looked: the copy was not asynchronous"
    wait_for(end)
    assert driver.elapsed_ns(start, end) > 0
    driver.page_unlock(memory.ctypes.data)


def test_a_held_copy_waits_on_the_device_for_compute(driver: CudaDriver) -> None:
    memory = host_memory()
    driver.page_lock(memory.ctypes.data, NUM_BYTES)
    target = torch.zeros(NUM_BYTES, dtype=torch.uint8, device=driver.device)
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)
    before = target.clone()
    driver.hold_copies(driver.mark_uses())
    driver.copy(target.data_ptr(), memory.ctypes.data, NUM_BYTES)
    wait_for(driver.mark_copies())
    assert not before.any() and target.any()
    driver.page_unlock(memory.ctypes.data)


def test_a_mark_covers_a_stream_that_compute_has_left(driver: CudaDriver) -> None:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        driver.mark_uses()
        torch.cuda._sleep(200_000_000)
        done = torch.cuda.Event()
        done.record(side)
    mark = driver.mark_uses()
    wait_for(mark)
    assert done.query()


def test_any_thread_may_copy(driver: CudaDriver) -> None:
    memory = host_memory()
    driver.page_lock(memory.ctypes.data, NUM_BYTES)
    target = torch.zeros(NUM_BYTES, dtype=torch.uint8, device=driver.device)
    torch.cuda.synchronize()
    thread = threading.Thread(target=driver.copy, args=(target.data_ptr(), memory.ctypes.data, NUM_BYTES))
    thread.start()
    thread.join()
    wait_for(driver.mark_copies())
    assert np.array_equal(target.cpu().numpy(), memory)
    driver.page_unlock(memory.ctypes.data)


def test_a_refused_page_lock_is_a_sentence_and_harms_no_later_call(driver: CudaDriver) -> None:
    memory = host_memory()
    driver.page_lock(memory.ctypes.data, NUM_BYTES)
    with pytest.raises(DriverError, match="CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED"):
        driver.page_lock(memory.ctypes.data, NUM_BYTES)
    driver.page_unlock(memory.ctypes.data)
    with pytest.raises(DriverError, match="CUDA_ERROR"):
        driver.page_unlock(memory.ctypes.data)
    assert torch.ones(4, device=driver.device).sum().item() == 4, "an error stayed behind"


def test_device_memory_is_told_as_torch_sees_it(driver: CudaDriver) -> None:
    free, total = driver.memory()
    assert 0 < free < total
