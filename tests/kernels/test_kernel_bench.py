"""Benchmark: packed bytes a second of the CPU kernel, of one thread's CPU time, beside two yardsticks.

The machine's own read bandwidth, and torch's bfloat16 linear on an expert of the same shape.
"""

import time

import pytest

from compute.kernels import binding
from compute.kernels.measure import KernelFigures, measure_kernel

pytestmark = [
    pytest.mark.bench,
    pytest.mark.skipif(isinstance(binding.library(), str), reason="cpu.c is not compiled here"),
]

#: hidden, intermediate
SHAPES = {"olmoe-1b-7b": (2048, 1024), "qwen3-30b-a3b": (2048, 768), "deepseek-v2-lite": (2048, 1408)}
HEAD = f"\n{'shape':18} {'bits':>4} {'rows':>4} {'GB/s':>6} {'read':>6} {'share':>6} {'x linear':>8}  kernel"


def test_packed_bytes_a_second() -> None:
    print(HEAD)
    for shape in SHAPES:
        _tell(shape, _measure(shape, "4"))
    for bits in ("8", "3", "2"):
        _tell("olmoe-1b-7b", _measure("olmoe-1b-7b", bits))
    _tell("olmoe-1b-7b", _measure("olmoe-1b-7b", "4", variant="fp32"))


def test_many_rows() -> None:
    print(HEAD)
    for num_rows in (1, 2, 4, 8, 16, 32, 64, 128):
        _tell("olmoe-1b-7b", _measure("olmoe-1b-7b", "4", num_rows=num_rows))


def _measure(shape: str, bits: str, num_rows: int = 1, variant: str = "int16") -> KernelFigures:
    hidden, intermediate = SHAPES[shape]
    return measure_kernel(
        hidden, intermediate, bits, num_rows=num_rows, variant=variant, repeats=5, clock=time.thread_time
    )


def _tell(shape: str, figures: KernelFigures) -> None:
    gigabytes = [value / 1e9 for value in (figures.kernel_bytes_per_s, figures.read_bytes_per_s)]
    print(
        f"{shape:18} {figures.bits:>4} {figures.num_rows:>4} {gigabytes[0]:>6.2f} {gigabytes[1]:>6.2f} "
        f"{figures.share_of_read:>6.0%} {figures.times_linear:>8.2f}  {figures.name}"
    )
    assert figures.kernel_bytes_per_s > 0
