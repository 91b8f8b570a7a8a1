"""Jobs: what each arm's process is told, from the bench's settings; refused when they do not fit together."""

from collections.abc import Sequence
from pathlib import Path

from compute.budget import Asked, Budget, plan_budget
from launch.bench.arms import Arm
from launch.bench.config import BenchConfig
from launch.bench.job import ArmJob
from loader.direct_io import Reading, choose_reading, find_obstacle
from protocol.errors import MemoryBudgetError
from protocol.manifest import Manifest
from protocol.units import format_size


def plan_jobs(
    arms: Sequence[Arm],
    config: BenchConfig,
    store: Path,
    manifest: Manifest,
    checkpoint: Path | None,
    free_bytes: int,
) -> tuple[list[ArmJob], Reading]:
    """A job for each arm, and how every loader reads. All arms are open at the same time.

    Raises MemoryBudgetError when they cannot be, StoreError for direct reads that cannot be.
    """
    jobs = [_job(arm, config, store, manifest, checkpoint, free_bytes) for arm in arms]
    needed = {job.arm: _weight_bytes(job, manifest) for job in jobs}
    if sum(needed.values()) > free_bytes:
        words = ", ".join(f"{arm} {format_size(size)}" for arm, size in needed.items())
        raise MemoryBudgetError(
            f"the arms' weights take {format_size(sum(needed.values()))} together ({words}), "
            f"{format_size(free_bytes)} are free: name fewer --arms, or fewer --layers of a --shape"
        )
    spare_bytes = free_bytes - sum(needed.values())
    obstacle = find_obstacle(store, manifest)
    return jobs, choose_reading(config.direct_io, manifest.expert_bytes_total, spare_bytes, obstacle)


def _job(
    arm: Arm,
    config: BenchConfig,
    store: Path,
    manifest: Manifest,
    checkpoint: Path | None,
    free_bytes: int,
) -> ArmJob:
    arrangement = "emulated" if config.link is not None and arm.offloads else "direct"
    if config.device == "cuda":
        arrangement = "pinned"
    budget = _budget(arm, config, manifest, arrangement, free_bytes)
    return ArmJob(
        arm=arm.name,
        kind=arm.kind,
        folder=str(store if arm.is_ours else checkpoint),
        slots=budget.num_slots,
        frames=budget.num_frames,
        arrangement=arrangement,
        lookahead=arm.lookahead,
        policy=config.policy,
        link=config.link if arm.offloads else None,
        rate=config.rate if arm.offloads or arm.kind == "accelerate" else None,
        cpu_expert_bytes=budget.num_slots * manifest.layout.stride,
        threads=config.threads,
        routing=config.routing,
        gate_recall=config.gate_recall,
        seed=config.seed,
        pp=config.pp,
        tg=config.tg,
        num_segments=config.repeat + 1,
        timeout=config.timeout,
        device=config.device,
        stage=arm.stage,
    )


def _budget(arm: Arm, config: BenchConfig, manifest: Manifest, arrangement: str, free_bytes: int) -> Budget:
    """Slots as asked for, half of the experts when nothing is; all of them for the resident arm."""
    is_resident = arm.kind == "resident"
    slots = config.slots
    if is_resident:
        slots = manifest.num_keys
    elif slots is None and config.ram is None:
        slots = max(manifest.num_keys // 2, manifest.top_k)
    if arrangement == "pinned":
        assert slots is not None
        return Budget(min(slots, manifest.num_keys), 0, manifest.num_keys, "", ())
    asked = Asked(
        arrangement=arrangement,
        ram=None if is_resident else config.ram,
        slots=slots,
        free_bytes=free_bytes,
    )
    return plan_budget(manifest, asked)


def _weight_bytes(job: ArmJob, manifest: Manifest) -> int:
    """What an arm surely holds: experts of ours, the whole checkpoint of stock."""
    if job.kind == "transformers":
        return sum(path.stat().st_size for path in Path(job.folder).glob("*.safetensors"))
    if job.kind == "accelerate":
        return job.cpu_expert_bytes
    copies = job.frames + (job.slots if job.arrangement == "emulated" else 0)
    return copies * manifest.layout.stride
