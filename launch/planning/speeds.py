"""Speeds: what a forecast supposes of the device and the link, stated, measured here or assumed.

The constants are of the machines in docs/planning.md. Every number carries the words for where it
comes from, so that nobody takes an assumption for a measurement.
"""

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
MEASURED, STATED, ASSUMED = 1.6, 1.15, 2.0

#: On the CPU, in five small operations of torch: the Python and the small kernels of a layer, the gate
#: and the bookkeeping, a fetch's messages; and factors either way.
LAYER, OFFLOAD, FETCH = (30.0, 1.8), (28.0, 2.0), (5.0, 3.0)
#: What five small operations take on a machine that is not measured.
SMALL_US = 20.0
#: With CUDA the host issues kernels ahead; what it costs is the launches.
CUDA_LAYER_US = Band(150.0, 350.0, 900.0)
CUDA_OFFLOAD_US = Band(50.0, 250.0, 900.0)
CUDA_FETCH_US = Band(5.0, 20.0, 100.0)


@dataclass(frozen=True, slots=True)
class Supposed:
    """Speeds and the words for them."""

    speeds: Speeds
    compute_words: str
    link_words: str


def suppose(
    subject: Subject, device: str, link: int | None, compute: int | None, threads: int | None
) -> Supposed:
    """For "cpu" or "cuda"; the CPU's kernels are timed here, for about a second."""
    link_band, link_words = _link(device, link)
    if device == "cuda":
        band, words = _stated(compute) if compute else (Band.around(CUDA_RATE, ASSUMED), _assumed(CUDA_RATE))
        speeds = Speeds(band, band, link_band, CUDA_LAYER_US, CUDA_OFFLOAD_US, CUDA_FETCH_US)
        return Supposed(speeds, words, link_words)
    if compute:
        band, words = _stated(compute)
        return Supposed(_on_cpu(band, band, link_band, SMALL_US), words, link_words)
    from launch.planning.here import measure_here

    here = measure_here(subject, threads)
    experts, dense = Band.around(here.experts_rate, MEASURED), Band.around(here.dense_rate, MEASURED)
    layer_ms = LAYER[0] * here.small_us / 1000
    words = (
        f"measured here, on {here.num_threads} threads: experts at {format_size(here.experts_rate)}/s, "
        f"dense weights at {format_size(here.dense_rate)}/s, a layer's own cost {layer_ms:.2g} ms"
    )
    return Supposed(_on_cpu(experts, dense, link_band, here.small_us), words, link_words)


def _on_cpu(experts: Band, dense: Band, link: Band, small_us: float) -> Speeds:
    costs = [Band.around(number * small_us, factor) for number, factor in (LAYER, OFFLOAD, FETCH)]
    return Speeds(experts, dense, link, *costs)


def _link(device: str, link: int | None) -> tuple[Band, str]:
    if link is not None:
        return Band.around(link, STATED), f"{format_size(link)}/s as stated"
    rate, what = (PCIE_RATE, "PCIe 4.0 x16") if device == "cuda" else (DISK_RATE, "an NVMe disk")
    return Band.around(rate, ASSUMED), f"{format_size(rate)}/s assumed, {what}: --link states another"


def _stated(rate: int) -> tuple[Band, str]:
    return Band.around(rate, STATED), f"weights at {format_size(rate)}/s as stated"


def _assumed(rate: float) -> str:
    return f"weights at {format_size(rate)}/s assumed: --compute states another"
