"""The pipelining, drawn: throughput and overlap over link speed and queue depth, without faults.

One client plays every cell in turn on one loader. matplotlib is imported here only.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compute.loader_process import start_loader
from launch.output import write_whole
from launch.stress.config import StressConfig
from launch.stress.job import ClientJob
from launch.stress.scene import CLIENT_TIMEOUT_S, NUM_LAYERS, STRIDE_KIB, TOP_K
from launch.stress.synthetic_store import make_store
from launch.stress.tally import Count, Tally
from protocol.child import Child
from protocol.errors import SidestageError
from protocol.manifest import Manifest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Link speeds, bytes per second; and queue depths, layer-steps of lookahead.
RATES = (10_000_000, 20_000_000, 40_000_000, 80_000_000, 160_000_000)
DEPTHS = (0, 1, 2, 4)
CELL_S = 1.5
SLOTS = 32
_QUOTA = 24
_NUM_EXPERTS = 32
#: Of one layer-step's pretended computation: as long as a step's experts take at 80 MB/s.
_COMPUTE_S = TOP_K * STRIDE_KIB * 1024 / 80e6


@dataclass(frozen=True, slots=True)
class Cell:
    """What was measured at one link speed (bytes per second) and queue depth (layer-steps)."""

    rate: int
    depth: int
    bytes_per_second: float
    overlap: float


def draw_sweep(config: StressConfig) -> None:
    """Measure and write the picture. Raises SidestageError, ValueError without matplotlib."""
    try:
        import matplotlib  # noqa: F401 - before the measurement, not after it
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install 'sidestage[plot]'") from None
    assert config.plot
    _draw(measure(config.seed), config.plot)


def measure(seed: int, cell_s: float = CELL_S) -> list[Cell]:
    """Every rate with every depth."""
    with tempfile.TemporaryDirectory(prefix="sidestage-stress-") as name:
        folder = Path(name)
        store = folder / "store"
        manifest = make_store(store, NUM_LAYERS, _NUM_EXPERTS, TOP_K, STRIDE_KIB, seed=seed)
        with start_loader(store, num_frames=manifest.num_keys, timeout_s=CLIENT_TIMEOUT_S) as loader:
            jobs = [_job(loader.endpoint, folder, rate, depth, seed) for rate in RATES for depth in DEPTHS]
            _play(jobs, cell_s)
        return [_cell(job, manifest, cell_s) for job in jobs]


def _job(endpoint: str, folder: Path, rate: int, depth: int, seed: int) -> ClientJob:
    place = folder / f"tally-{rate}-{depth}"
    Tally.create(place).close()
    return ClientJob(
        endpoint=endpoint,
        store=os.fspath(folder / "store"),
        tally=os.fspath(place),
        arrangement="emulated",
        link=rate,
        slots=SLOTS,
        quota=_QUOTA,
        lookahead=depth,
        compute_s=_COMPUTE_S,
        seed=seed,
        timeout_s=CLIENT_TIMEOUT_S,
    )


def _play(jobs: list[ClientJob], cell_s: float) -> None:
    argv = [sys.executable, "-P", "-m", "launch.stress.sweep_client", str(cell_s)]
    with Child.spawn([*argv, *(job.to_json() for job in jobs)], name="the sweep") as child:
        if child.wait(len(jobs) * (cell_s + CLIENT_TIMEOUT_S)) != 0:
            raise SidestageError(f"the sweep has failed: {child.stderr_tail()[-500:] or 'it took too long'}")


def _cell(job: ClientJob, manifest: Manifest, cell_s: float) -> Cell:
    assert job.link
    with Tally(Path(job.tally)) as tally:
        coming_ns = max(tally[Count.COMING_NS], 1)
        seconds = tally[Count.LINK_OPEN_NS] / 1e9 or cell_s
        return Cell(
            rate=job.link,
            depth=job.lookahead,
            bytes_per_second=tally[Count.BYTES] / seconds,
            overlap=max(1 - tally[Count.STALL_NS] / coming_ns, 0.0),
        )


def _draw(cells: list[Cell], place: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for depth in DEPTHS:
        row = [cell for cell in cells if cell.depth == depth]
        rates = [cell.rate / 1e6 for cell in row]
        label = f"{depth} layer-steps ahead"
        left.plot(rates, [cell.bytes_per_second / 1e6 for cell in row], marker="o", label=label)
        right.plot(rates, [100 * cell.overlap for cell in row], marker="o", label=label)
    limits = [rate / 1e6 for rate in RATES]
    left.plot(limits, limits, color="black", linestyle=":", label="the link's own speed")
    _finish(left, "arrived, MB/s")
    _finish(right, "overlap, % of the time with experts on their way")
    right.set_ylim(0, 100)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    write_whole(place, picture.getvalue())


def _finish(axes: Axes, what: str) -> None:
    axes.set_xscale("log")
    axes.set_xticks([rate / 1e6 for rate in RATES], [f"{rate // 10**6}" for rate in RATES])
    axes.minorticks_off()
    axes.set_xlabel("link, MB/s")
    axes.set_ylabel(what)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
