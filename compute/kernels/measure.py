"""What the CPU kernel reaches on this machine: packed bytes a second, beside two yardsticks.

The yardsticks are this machine's own read bandwidth and torch's bfloat16 `linear` on an expert of
the same shape. Everything cycles through one pool of memory, larger than the caches, and is timed
in turn within one run; medians are told. Measures one thread unless told otherwise.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations.moe import use_experts_implementation

from compute.kernels.cpu import CpuKernel
from protocol.blob import CODE_PLANES, BlobLayout

READ_BYTES = 32 * 2**20
_LIKE = 0x2A


@dataclass(frozen=True, slots=True)
class KernelFigures:
    """Medians of one measurement. `name` tells the kernel's variant and instruction set."""

    name: str
    bits: str
    group: int
    num_rows: int
    num_threads: int
    kernel_us: float
    linear_us: float
    kernel_bytes_per_s: float
    read_bytes_per_s: float

    @property
    def share_of_read(self) -> float:
        """The kernel's packed bytes a second, of what one thread reads when it does nothing else."""
        return self.kernel_bytes_per_s / self.read_bytes_per_s

    @property
    def times_linear(self) -> float:
        """How many times faster than torch's bfloat16 linear on the unquantized expert."""
        return self.linear_us / self.kernel_us


class _Gated(nn.Module):
    def __init__(self, config: object) -> None:
        super().__init__()
        self.act_fn = nn.SiLU()


def gated_experts() -> nn.Module:
    """An experts module as transformers makes them: SiLU, gate and up in halves, no biases."""
    return cast(nn.Module, use_experts_implementation(_Gated)(None))


def gated_layout(hidden: int, intermediate: int, bits: str, group: int) -> BlobLayout:
    """The layout of an expert with gate_up_proj [2 * intermediate, hidden] and its down_proj."""
    parts: list[tuple[str, str, tuple[int, ...]]] = []
    for name, rows, columns in (
        ("gate_up_proj", 2 * intermediate, hidden),
        ("down_proj", hidden, intermediate),
    ):
        parts += [(name + end, "uint8", (rows * width // 8, columns)) for end, width in CODE_PLANES[bits]]
        parts += [(name + end, "float16", (rows, columns // group)) for end in (".scale", ".zero")]
    return BlobLayout.pack(bits, group, parts)


def packed_bytes(layout: BlobLayout) -> int:
    """The bytes of a blob that are read: without its padding."""
    return sum(segment.num_bytes for segment in layout.segments)


def measure_kernel(
    hidden: int,
    intermediate: int,
    bits: str = "4",
    group: int = 64,
    *,
    num_rows: int = 1,
    num_threads: int = 1,
    variant: str = "int16",
    pool_bytes: int = 768 * 2**20,
    repeats: int = 9,
    clock: Callable[[], float] = time.perf_counter,
) -> KernelFigures:
    """Kernel, bfloat16 linear and plain reads in turn, `repeats` times.

    `clock`: time.thread_time for one thread on a machine that has other work to do.
    """
    layout = gated_layout(hidden, intermediate, bits, group)
    kernel = CpuKernel(layout, variant=variant, threads=num_threads)
    # The same small finite number wherever one looks: as float16, bfloat16 or codes.
    pool = torch.full((pool_bytes,), _LIKE, dtype=torch.uint8)
    rows = torch.randn(num_rows, hidden, dtype=torch.bfloat16)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        arms = {
            "read": _reading(kernel, pool),
            "linear": _linear(pool, rows, intermediate),
            "kernel": _kernel(kernel, layout, pool, rows),
        }
        seconds = _in_turn(arms, repeats, clock)
    finally:
        torch.set_num_threads(before)
    return KernelFigures(
        name=kernel.name,
        bits=bits,
        group=group,
        num_rows=num_rows,
        num_threads=num_threads,
        kernel_us=seconds["kernel"] * 1e6,
        linear_us=seconds["linear"] * 1e6,
        kernel_bytes_per_s=packed_bytes(layout) / seconds["kernel"],
        read_bytes_per_s=READ_BYTES / seconds["read"],
    )


def _in_turn(
    arms: dict[str, Callable[[], None]], repeats: int, clock: Callable[[], float], calls: int = 8
) -> dict[str, float]:
    """Median seconds of one call of each arm."""
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for name, call in list(arms.items()) * repeats:
        started = clock()
        for _ in range(calls):
            call()
        taken[name].append((clock() - started) / calls)
    return {name: statistics.median(times) for name, times in taken.items()}


def _cycle(pool: Tensor, size: int) -> Iterator[Tensor]:
    """Pieces of `size` bytes, from the first to the last and again."""
    starts = range(0, len(pool) - size + 1, -(-size // 4096) * 4096)
    return itertools.cycle([pool[start : start + size] for start in starts])


def _reading(kernel: CpuKernel, pool: Tensor) -> Callable[[], None]:
    pieces = _cycle(pool, READ_BYTES)
    return lambda: kernel.read(next(pieces))


def _kernel(kernel: CpuKernel, layout: BlobLayout, pool: Tensor, rows: Tensor) -> Callable[[], None]:
    blobs, module = _cycle(pool, layout.stride), gated_experts()

    def call() -> None:
        kernel(module, next(blobs), rows)

    return call


def _linear(pool: Tensor, rows: Tensor, intermediate: int) -> Callable[[], None]:
    hidden = rows.shape[1]
    experts = _cycle(pool, 3 * hidden * intermediate * 2)

    def call() -> None:
        weights = next(experts).view(torch.bfloat16).view(3 * intermediate, hidden)
        gate, up = functional.linear(rows, weights[: 2 * intermediate]).chunk(2, dim=-1)
        functional.linear(functional.silu(gate) * up, weights[2 * intermediate :].view(hidden, intermediate))

    return call
