"""Compile a Triton launch for a GPU that is not there, and read from the binary what it takes.

Needs triton's own compiler and the assembler and cuobjdump that its Linux wheels bring; no driver.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from compute.kernels.triton_launch import Launch

CUOBJDUMP = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
#: What a program may have of shared memory, by compute capability.
MAX_SHARED_BYTES = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}

_INDICES = ("addresses_ptr", "starts_ptr", "counts_ptr", "places_ptr")


@dataclass(frozen=True, slots=True)
class Compiled:
    """`stack_bytes` is memory that registers are spilled to; `widest_load` in bits."""

    num_registers: int
    stack_bytes: int
    shared_bytes: int
    widest_load: int
    ptx: str


class NoDriver:
    """As much of a driver as the way to a compilation asks for."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def cross_compile(launch: Launch, capability: int, dtype: str = "bf16") -> Compiled:
    """`launch` as it would be compiled on a GPU of this capability, for activations of `dtype`.

    `dtype` is that of all pointers but indices. Numbers that are no constants are of 32 bits.
    """
    kernel = launch.kernel
    names = [name for name in kernel.arg_names if name.endswith("_ptr")]
    signature = {name: "*i64" if name in _INDICES else f"*{dtype}" for name in names}
    signature |= dict.fromkeys(launch.constants, "constexpr")
    signature = {name: signature.get(name, "i32") for name in kernel.arg_names}
    aligned = {
        (number,): [["tt.divisibility", 16]]
        for number, name in enumerate(kernel.arg_names)
        if name in ("x_ptr", "out_ptr")
    }
    source = ASTSource(kernel, signature, constexprs=launch.constants, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    num_registers, stack_bytes, local_bytes = _usage(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    return Compiled(
        num_registers, stack_bytes + local_bytes, compiled.metadata.shared, _widest_load(ptx), ptx
    )


def _usage(cubin: bytes) -> tuple[int, int, int]:
    """(registers, stack bytes, local bytes) of the only kernel in a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.findall(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", told)
    assert len(found) == 1, told
    registers, stack, local = map(int, found[0])
    return registers, stack, local


def _widest_load(ptx: str) -> int:
    """Of weights in words of 32 bits; 0 when all are copied to shared memory."""
    counts = re.findall(r"ld\.global\S*?(?:\.v(\d))?\.b32", ptx)
    return max((32 * int(count or 1) for count in counts), default=0)
