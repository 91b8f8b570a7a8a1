"""What CudaDriver passes to libcuda, seen by a stand-in for that library; torch's part needs a device."""

import ctypes
import shutil
import subprocess

import pytest

from compute.transports import cuda_driver
from compute.transports.cuda_driver import CudaDriver
from compute.transports.driver import DriverError

CONTEXT, STREAM = 0x1234_5678_9ABC_DEF0, 0x0FED_CBA9_8765_4321
PORTABLE, DEVICEMAP, CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM = 1, 2, 91
ADDRESS, TARGET, NUM_BYTES = 0x7FFF_1234_5678_9000, 0x7F00_0000_0000_1000, 5 * 2**30

SOURCE = """
#include <stddef.h>
#include <stdint.h>
uint64_t seen[8]; int64_t depth; int status, answer;
int cuCtxPushCurrent_v2(void *context) { seen[0] = (uint64_t)context; depth++; return 0; }
int cuCtxPopCurrent_v2(void **context) { *context = (void *)seen[0]; depth--; return 0; }
int cuMemHostRegister_v2(void *p, size_t n, unsigned flags) {
    seen[1] = (uint64_t)p; seen[2] = n; seen[3] = flags; seen[4] = depth; return status; }
int cuMemHostUnregister(void *p) { seen[1] = (uint64_t)p; return status; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, void *stream) {
    seen[1] = to; seen[2] = (uint64_t)from; seen[3] = n; seen[4] = (uint64_t)stream; return status; }
int cuCtxGetDevice(int *device) { *device = depth ? 5 : -1; return status; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    seen[1] = attribute; seen[2] = device; *value = answer; return status; }
int cuGetErrorName(int error, const char **name) {
    *name = error == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "?"; return 0; }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("libcuda")
    (folder / "cuda.c").write_text(SOURCE)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", folder / "libcuda.so.1", folder / "cuda.c"], check=True
    )
    return ctypes.CDLL(str(folder / "libcuda.so.1"))


@pytest.fixture
def driver(library: ctypes.CDLL) -> CudaDriver:
    driver = object.__new__(CudaDriver)
    driver.name = "any device"
    driver._cuda = library
    driver._context = ctypes.c_void_p(CONTEXT)
    driver._copy_handle = ctypes.c_void_p(STREAM)
    ctypes.c_int.in_dll(library, "status").value = 0
    return driver


def seen(library: ctypes.CDLL) -> list[int]:
    return list((ctypes.c_uint64 * 8).in_dll(library, "seen"))


def depth(library: ctypes.CDLL) -> int:
    return ctypes.c_int64.in_dll(library, "depth").value


def test_a_copy_passes_whole_addresses_and_the_stream(driver: CudaDriver, library: ctypes.CDLL) -> None:
    driver.copy(TARGET, ADDRESS, NUM_BYTES)
    assert seen(library)[:5] == [CONTEXT, TARGET, ADDRESS, NUM_BYTES, STREAM]
    assert depth(library) == 0


def test_a_page_lock_is_for_every_context_and_for_kernels_and_made_within_the_devices(
    driver: CudaDriver, library: ctypes.CDLL
) -> None:
    driver.page_lock(ADDRESS, NUM_BYTES)
    assert seen(library)[:5] == [CONTEXT, ADDRESS, NUM_BYTES, PORTABLE | DEVICEMAP, 1]
    driver.page_unlock(ADDRESS + 4096)
    assert seen(library)[1] == ADDRESS + 4096
    assert depth(library) == 0


@pytest.mark.parametrize("answer", [0, 1])
def test_a_driver_asks_its_own_device_whether_kernels_read_by_the_hosts_addresses(
    answer: int, driver: CudaDriver, library: ctypes.CDLL
) -> None:
    ctypes.c_int.in_dll(library, "answer").value = answer
    assert driver.reads_in_place() is bool(answer)
    assert seen(library)[1:3] == [CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM, 5]
    assert depth(library) == 0


def test_a_refusal_has_the_drivers_own_words_and_leaves_the_context(
    driver: CudaDriver, library: ctypes.CDLL
) -> None:
    ctypes.c_int.in_dll(library, "status").value = 2
    with pytest.raises(
        DriverError, match=r"any device page-locks no 5\.0 GiB more: CUDA_ERROR_OUT_OF_MEMORY \(2\)"
    ):
        driver.page_lock(ADDRESS, NUM_BYTES)
    with pytest.raises(DriverError, match="refused a copy"):
        driver.copy(TARGET, ADDRESS, NUM_BYTES)
    with pytest.raises(DriverError, match="is no device"):
        driver.reads_in_place()
    assert depth(library) == 0


def test_a_missing_driver_library_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with pytest.raises(DriverError, match="is the driver installed"):
        cuda_driver._load()
