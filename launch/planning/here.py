"""How fast this machine's CPU is, timed in about a second: the kernels, and what a layer costs beside them.

As it is now: a machine that has other work to do is measured with it. Imports torch.
"""

import os
import time
from dataclasses import dataclass

import torch
from torch.nn import functional

from compute.kernels.measure import measure_kernel, packed_bytes
from launch.planning.subject import Subject

_POOL_BYTES = 192 * 2**20
#: Of the unquantized expert that is timed: gate, up and down in bfloat16. Larger ones are cut; smaller
#: ones are stretched, for what a call costs is in the layer's own time already.
_MOST_BYTES = 64 * 2**20
_LEAST_SIDE = 1024
_SIDES = 3 * 2
_REPEATS = 5

_SMALL = 256
_SMALL_S = 0.3


@dataclass(frozen=True, slots=True)
class Here:
    """Bytes a second of expert and of dense weights; microseconds of five small operations, one by one."""

    experts_rate: float
    dense_rate: float
    small_us: float
    num_threads: int


def measure_here(subject: Subject, threads: int | None) -> Here:
    """The kernel on an expert of this shape, torch on the unquantized one, and torch on next to nothing."""
    layout = subject.manifest.layout
    num_threads = threads or min(torch.get_num_threads(), os.cpu_count() or 1)
    bits, group = ("8", 64) if layout.bits == "none" else (layout.bits, layout.group)
    hidden = _whole(max(subject.hidden, _LEAST_SIDE), group)
    intermediate = _whole(
        min(max(subject.intermediate, _LEAST_SIDE), _MOST_BYTES // (_SIDES * hidden)), group
    )
    figures = measure_kernel(
        hidden,
        intermediate,
        bits,
        group,
        num_threads=num_threads,
        pool_bytes=_POOL_BYTES,
        repeats=_REPEATS,
    )
    dense = _SIDES * hidden * intermediate / (figures.linear_us / 1e6)
    experts = dense
    if layout.bits != "none":
        experts = figures.kernel_bytes_per_s * layout.stride / packed_bytes(layout)
    return Here(experts, dense, _small_us(), num_threads)


def _whole(side: int, group: int) -> int:
    """A side that the group divides; a model's own nearly always is one."""
    return max(group, side // group * group)


def _small_us() -> float:
    """The mean, not the median: what other work takes from us is part of it."""
    row = torch.ones(1, _SMALL, dtype=torch.bfloat16)
    weight = torch.ones(_SMALL, _SMALL, dtype=torch.bfloat16)
    count, started_s = -1, time.perf_counter()
    while count < 0 or time.perf_counter() - started_s < _SMALL_S:
        mixed = functional.linear(row, weight) + row
        functional.silu(mixed * row).view(4, -1)
        count += 1
        if count == 0:
            started_s = time.perf_counter()
    return (time.perf_counter() - started_s) / max(count, 1) * 1e6
