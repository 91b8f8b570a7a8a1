"""What a stress run has to say: the numbers of its report, and whether they are good enough."""

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from launch.stress.memory import MemoryCurve
from launch.stress.scene import Scene
from launch.stress.tally import Count
from protocol.units import format_size


@dataclass(frozen=True, slots=True)
class Report:
    """The names of `--json`. Times are None where nothing was measured.

    `overlap_fraction`: of the time during which experts were on their way, the share in which
    clients did not wait. `link_utilisation`: None without a link. `longest_recovery_s`: from a blow
    to the loader to the first expert that its successor brought. `memory`: see memory.py.
    """

    transfers: int
    bytes: int
    gigabytes_per_second: float
    link_utilisation: float | None
    overlap_fraction: float | None
    demand_p50_us: float | None
    demand_p99_us: float | None
    faults_injected: int
    recoveries: int
    corrupt: int
    lost: int
    leaked_fds: int
    leaked_processes: int
    leaked_files: int
    max_rss_bytes: int
    longest_recovery_s: float | None
    memory: list[dict[str, float | int]]

    @property
    def is_clean(self) -> bool:
        """Nothing was corrupt, lost or left behind."""
        return not (
            self.corrupt or self.lost or self.leaked_fds or self.leaked_processes or self.leaked_files
        )

    def as_json(self) -> dict[str, object]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        link = "" if self.link_utilisation is None else f", link {self.link_utilisation:.1%} busy"
        overlap = "" if self.overlap_fraction is None else f", overlap {self.overlap_fraction:.1%}"
        slowest = (
            "" if self.longest_recovery_s is None else f" (the loader's within {self.longest_recovery_s} s)"
        )
        return [
            f"{self.transfers} experts, {format_size(self.bytes)}, "
            f"{self.gigabytes_per_second:.3f} GB/s{link}{overlap}",
            f"demand p50 {self.demand_p50_us} us, p99 {self.demand_p99_us} us; "
            f"largest process {format_size(self.max_rss_bytes)}",
            f"{self.faults_injected} faults injected, {self.recoveries} recoveries{slowest}; "
            f"corrupt {self.corrupt}, lost {self.lost}, leaked: {self.leaked_fds} fds, "
            f"{self.leaked_processes} processes, {self.leaked_files} files",
        ]


@dataclass(frozen=True, slots=True)
class Leaks:
    """What was still there when nothing should have been."""

    fds: int
    processes: int
    files: int


def total(scene: Scene, count: Count) -> int:
    """Over all clients."""
    return sum(seat.tally[count] for seat in scene.seats)


def num_recoveries(scene: Scene) -> int:
    """Loaders and clients replaced, sessions begun anew, refused experts that came after all."""
    respawns = sum(seat.num_respawns for seat in scene.seats)
    mended = total(scene, Count.RENEWALS) + total(scene, Count.REPAIRED)
    return scene.loader.num_restarts + respawns + mended


@dataclass(frozen=True, slots=True)
class Counted:
    """The numbers of a scene, taken before it is closed."""

    transfers: int
    num_bytes: int
    recoveries: int
    longest_recovery_s: float | None
    corrupt: int
    lost: int
    link_utilisation: float | None
    overlap_fraction: float | None
    demand_us: npt.NDArray[np.uint32]
    idle_us: npt.NDArray[np.uint32]

    @classmethod
    def of(cls, scene: Scene) -> "Counted":
        coming_ns, open_ns = total(scene, Count.COMING_NS), total(scene, Count.LINK_OPEN_NS)
        stall_ns, busy_ns = total(scene, Count.STALL_NS), total(scene, Count.LINK_BUSY_NS)
        return cls(
            transfers=total(scene, Count.TRANSFERS),
            num_bytes=total(scene, Count.BYTES),
            recoveries=num_recoveries(scene),
            longest_recovery_s=round(max(scene.recovery.seconds), 3) if scene.recovery.seconds else None,
            corrupt=total(scene, Count.CORRUPT),
            lost=total(scene, Count.LOST) + sum(s.num_lost for s in scene.seats) + scene.num_lost_loaders,
            link_utilisation=round(busy_ns / open_ns, 4) if busy_ns else None,
            overlap_fraction=round(max(1 - stall_ns / coming_ns, 0.0), 4) if coming_ns else None,
            demand_us=np.concatenate([seat.tally.demand_us for seat in scene.seats]),
            idle_us=np.concatenate([seat.tally.idle_us for seat in scene.seats]),
        )

    def report(self, *, seconds: float, num_faults: int, leaks: Leaks, memory: MemoryCurve) -> Report:
        """Together with what only the run knows."""
        return Report(
            transfers=self.transfers,
            bytes=self.num_bytes,
            gigabytes_per_second=round(self.num_bytes / seconds / 1e9, 6),
            link_utilisation=self.link_utilisation,
            overlap_fraction=self.overlap_fraction,
            demand_p50_us=percentile(self.demand_us, 50),
            demand_p99_us=percentile(self.demand_us, 99),
            faults_injected=num_faults,
            recoveries=self.recoveries,
            corrupt=self.corrupt,
            lost=self.lost,
            leaked_fds=leaks.fds,
            leaked_processes=leaks.processes,
            leaked_files=leaks.files,
            max_rss_bytes=memory.largest,
            longest_recovery_s=self.longest_recovery_s,
            memory=memory.as_json(),
        )


def percentile(values: npt.NDArray[np.uint32], share: float) -> float | None:
    """None of nothing."""
    return round(float(np.percentile(values, share)), 1) if len(values) else None
