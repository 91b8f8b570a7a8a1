"""A libcuda without a device: whatever triton's own C code asks of it succeeds, and launches are noted.

With it triton compiles its launchers, loads kernels and launches them as it would on a device; nothing
runs. Run as a script, in a process whose LD_LIBRARY_PATH begins with FOLDER, it launches every kernel of
ours and prints the launches: `hollow_cuda.py FOLDER`.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

_SPECIAL = r"""
#include <stdint.h>
#include <stdio.h>
#include <string.h>
static char told[1 << 16];
const char *hollow_told(void) { return told; }
int cuModuleGetFunction(void **f, void *m, const char *n) { *f = strdup(n); return 0; }
int cuModuleLoadData(void **m, const void *p) { *m = (void *)1; return 0; }
int cuCtxGetCurrent(void **c) { *c = (void *)1; return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = 227 * 1024; return 0; }
int cuFuncGetAttribute(int *v, int a, void *f) { *v = a == 3 ? 0 : 1024; return 0; }
int cuPointerGetAttribute(void *data, int a, uint64_t p) { *(uint64_t *)data = p; return 0; }
int cuLaunchKernelEx(const unsigned *grid, void *f, void **args, void **extra) {
    snprintf(told + strlen(told), sizeof told - strlen(told), "%s %u,%u,%u %u\n", (char *)f, grid[0], grid[1],
             grid[2], grid[3]);
    return 0;
}
"""


def build(folder: Path) -> None:
    """folder/libcuda.so.1. Needs a C compiler."""
    import triton

    asking = Path(triton.__file__).parent / "backends" / "nvidia" / "driver"
    asked = "".join(path.read_text() for path in map(asking.with_suffix, (".c", ".py")) if path.is_file())
    names = set(re.findall(r"\bcu[A-Z][A-Za-z0-9]*\b", asked)) - set(re.findall(r"\bcu\w+", _SPECIAL))
    source = folder / "cuda.c"
    source.write_text(_SPECIAL + "".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(names)))
    argv = ["cc", "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", "-o", str(folder / "libcuda.so.1")]
    subprocess.run([*argv, str(source)], check=True)


def activate() -> None:
    """From now on triton launches on a device of capability 9.0 that is hollow."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime import driver

    class Hollow(CudaDriver):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.get_current_device = lambda: 0
            self.get_device_capability = lambda device=0: (9, 0)
            self.get_current_stream = lambda device=0: 0
            self.set_current_device = lambda device: None

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 90, 32)

    driver.set_active(Hollow())


def told(folder: Path) -> str:
    library = ctypes.CDLL(str(folder / "libcuda.so.1"))
    library.hollow_told.restype = ctypes.c_char_p
    lines: bytes = library.hollow_told()
    return lines.decode()


def launch_all() -> None:
    """A token and a prompt through experts, a resolve and a gather, each twice: compiled, and known."""
    import torch
    from support.layer_steps import experts_module, gated_tensors, make_step, pool_of, run_step

    from compute.beside.words import DeviceWords
    from compute.kernels.triton_kernel import TritonKernel
    from compute.kernels.triton_resolve import TritonResolver

    for num_tokens in (1, 1, 64, 64):
        made = make_step(gated_tensors(128, 64), "4", num_tokens=num_tokens, dtype=torch.bfloat16)
        pool, addresses = pool_of(made, range(3), 3)
        with torch.no_grad():
            run_step(TritonKernel(made.layout), experts_module(), made, addresses)
        del pool
    words = DeviceWords(*(torch.zeros(8, dtype=torch.int64) for _ in range(3)), torch.zeros(4, 8).long())
    state, index, (addresses, sources) = (
        torch.zeros(8).long(),
        torch.tensor([[3, 1]]),
        torch.zeros(2, 2).long(),
    )
    for _ in range(2):
        TritonResolver().resolve(words, state, 0, 8, index, None, addresses, sources)
        TritonResolver().gather(addresses, sources, 4096 * 8)


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    activate()
    launch_all()
    sys.stdout.write(told(Path(sys.argv[1])))
