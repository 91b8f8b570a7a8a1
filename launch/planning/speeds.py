"""Speeds: what a forecast supposes of the device and the link, stated, measured here or assumed.

The constants are of the machines in docs/planning.md. Every number carries the words for where it
comes from, so that nobody takes an assumption for a measurement.
"""

import os
from dataclasses import dataclass

from launch.planning.forecast import Band, Speeds
from launch.planning.subject import Subject
from protocol.units import format_size

#: Bytes a second of a disk (or its page cache), and of PCIe 4.0 x16.
DISK_RATE = 2e9
PCIE_RATE = 25e9
#: Bytes a second of weights on a CUDA device of the middle sort, in decode.
CUDA_RATE = 400e9

#: Factors either way: of what was measured here, of what the user stated, of what was assumed.
MEASURED, STATED, ASSUMED = 1.4, 1.15, 2.0

#: On the CPU: Python and small kernels of a layer, the gate and the bookkeeping, a fetch's messages.
CPU_LAYER_US = Band(450.0, 700.0, 1400.0)
CPU_OFFLOAD_US = Band(250.0, 600.0, 1200.0)
CPU_FETCH_US = Band(30.0, 100.0, 400.0)
#: With CUDA the host issues kernels ahead; what it costs is the launches.
CUDA_LAYER_US = Band(150.0, 350.0, 900.0)
CUDA_OFFLOAD_US = Band(50.0, 250.0, 900.0)
CUDA_FETCH_US = Band(5.0, 20.0, 100.0)

_POOL_BYTES = 192 * 2**20
#: Of the unquantized expert that is timed: gate, up and down in bfloat16. Larger ones are cut; smaller
#: ones are stretched, for what a call costs is in the layer's own time already.
_MOST_BYTES = 64 * 2**20
_LEAST_SIDE = 1024
_SIDES = 3 * 2
_REPEATS = 3


@dataclass(frozen=True, slots=True)
class Supposed:
    """Speeds and the words for them."""

    speeds: Speeds
    compute_words: str
    link_words: str


def suppose(
    subject: Subject, device: str, link: int | None, compute: int | None, threads: int | None
) -> Supposed:
    """For "cpu" or "cuda"; the CPU's kernels are timed here, for less than a second."""
    link_band, link_words = _link(device, link)
    if device == "cuda":
        band, words = _stated(compute) if compute else (Band.around(CUDA_RATE, ASSUMED), _assumed(CUDA_RATE))
        speeds = Speeds(band, band, link_band, CUDA_LAYER_US, CUDA_OFFLOAD_US, CUDA_FETCH_US)
        return Supposed(speeds, words, link_words)
    if compute:
        experts, words = _stated(compute)
        dense = experts
    else:
        experts, dense, words = _measured(subject, threads)
    speeds = Speeds(experts, dense, link_band, CPU_LAYER_US, CPU_OFFLOAD_US, CPU_FETCH_US)
    return Supposed(speeds, words, link_words)


def _link(device: str, link: int | None) -> tuple[Band, str]:
    if link is not None:
        return Band.around(link, STATED), f"{format_size(link)}/s as stated"
    rate, what = (PCIE_RATE, "PCIe 4.0 x16") if device == "cuda" else (DISK_RATE, "an NVMe disk")
    return Band.around(rate, ASSUMED), f"{format_size(rate)}/s assumed, {what}: --link states another"


def _stated(rate: int) -> tuple[Band, str]:
    return Band.around(rate, STATED), f"weights at {format_size(rate)}/s as stated"


def _assumed(rate: float) -> str:
    return f"weights at {format_size(rate)}/s assumed: --compute states another"


def _measured(subject: Subject, threads: int | None) -> tuple[Band, Band, str]:
    """The kernel on an expert of this shape, and torch on the unquantized one, on this machine."""
    from compute.kernels.measure import measure_kernel, packed_bytes

    layout = subject.manifest.layout
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
        num_threads=threads or _num_threads(),
        pool_bytes=_POOL_BYTES,
        repeats=_REPEATS,
    )
    dense = _SIDES * hidden * intermediate / (figures.linear_us / 1e6)
    experts = dense
    if layout.bits != "none":
        experts = figures.kernel_bytes_per_s * layout.stride / packed_bytes(layout)
    words = (
        f"measured here, on {figures.num_threads} threads: experts at {format_size(experts)}/s, "
        f"dense weights at {format_size(dense)}/s"
    )
    return Band.around(experts, MEASURED), Band.around(dense, MEASURED), words


def _whole(side: int, group: int) -> int:
    """A side that the group divides; a model's own nearly always is one."""
    return max(group, side // group * group)


def _num_threads() -> int:
    import torch

    return min(torch.get_num_threads(), os.cpu_count() or 1)
