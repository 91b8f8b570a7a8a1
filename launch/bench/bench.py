"""`sidestage bench`: opens every arm, measures them in turn, and tells their figures beside the bounds.

Starts processes and reads manifests; imports no torch.
"""

import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from compute.budget import Asked, Budget, plan_budget
from compute.policies import find
from launch.bench.arm_process import ArmError, ArmProcess
from launch.bench.bandwidth import read_bytes_per_s
from launch.bench.config import OURS, STOCK, BenchConfig
from launch.bench.figures import Figures, Means, Segment, add_bound, failed, figures_of
from launch.bench.folders import checkpoint_of, store_of
from launch.bench.job import ArmJob
from launch.bench.table import print_figures
from launch.output import check_place, write_json
from protocol.arena import available_memory_bytes
from protocol.errors import MemoryBudgetError
from protocol.manifest import MANIFEST_FILE, Manifest
from protocol.units import format_size

_VERSIONS = ("sidestage", "torch", "transformers", "accelerate", "numpy")


@dataclass(slots=True)
class _Arm:
    """One arm on its way: what it told of itself, its segments, and why it stopped."""

    process: ArmProcess
    facts: Figures
    segments: list[Segment]
    error: str = ""


def bench(config: BenchConfig) -> int:
    """Measure, print, write; the exit status: 1 when an arm could not run. Raises with a sentence."""
    check_place("--json", config.json)
    store, manifest = store_of(config)
    names = config.arms or _default_arms(config)
    checkpoint = checkpoint_of(config) if set(names) & set(STOCK) else None
    jobs = [_job(name, config, store, manifest, checkpoint) for name in names]
    _check_memory(jobs, manifest, available_memory_bytes())
    arms = _measure(jobs, config)
    figures = [_figures(name, arm, config) for name, arm in zip(names, arms)]
    _add_bounds(figures, config, store, manifest)
    if config.json is not None:
        write_json(config.json, json.dumps(_report(figures, config, manifest)))
    out = sys.stderr if config.json == "-" else sys.stdout
    print_figures(_title(config, manifest), figures, out)
    return 1 if any("error" in each for each in figures) else 0


def _default_arms(config: BenchConfig) -> tuple[str, ...]:
    """Ours, and stock transformers where its checkpoint is there already."""
    is_store = config.model is not None and (Path(config.model) / MANIFEST_FILE).is_file()
    if config.shape is not None or is_store:
        return ("resident", "offload")
    return ("resident", "offload", "transformers")


# --- jobs ---------------------------------------------------------------------------------------


def _job(name: str, config: BenchConfig, store: Path, manifest: Manifest, checkpoint: Path | None) -> ArmJob:
    offloads = name in ("offload", "oracle")
    arrangement = "emulated" if config.link is not None and offloads else "direct"
    budget = _budget(config, manifest, arrangement, is_resident=name == "resident")
    return ArmJob(
        arm=name,
        folder=str(store if name in OURS else checkpoint),
        slots=budget.num_slots,
        frames=budget.num_frames,
        arrangement=arrangement,
        lookahead=config.lookahead if offloads else 0,
        policy=config.policy,
        link=config.link if offloads else None,
        rate=config.rate if offloads or name == "accelerate" else None,
        cpu_expert_bytes=budget.num_slots * manifest.layout.stride,
        threads=config.threads,
        routing=config.routing,
        gate_recall=config.gate_recall,
        seed=config.seed,
        pp=config.pp,
        tg=config.tg,
        num_segments=config.repeat + 1,
        timeout=config.timeout,
    )


def _budget(config: BenchConfig, manifest: Manifest, arrangement: str, is_resident: bool) -> Budget:
    """Slots as asked for, half of the experts when nothing is; all of them for the resident arm."""
    slots = config.slots
    if is_resident:
        slots = manifest.num_keys
    elif slots is None and config.ram is None:
        slots = max(manifest.num_keys // 2, manifest.top_k)
    asked = Asked(
        arrangement=arrangement,
        ram=None if is_resident else config.ram,
        slots=slots,
        free_bytes=available_memory_bytes(),
        may_pass=":" in config.policy or hasattr(find(config.policy), "choose_admitted"),
    )
    return plan_budget(manifest, asked)


def _check_memory(jobs: list[ArmJob], manifest: Manifest, free_bytes: int) -> None:
    """All arms are open at the same time. Raises MemoryBudgetError when they cannot be."""
    needed = {job.arm: _weight_bytes(job, manifest) for job in jobs}
    if sum(needed.values()) > free_bytes:
        words = ", ".join(f"{arm} {format_size(size)}" for arm, size in needed.items())
        raise MemoryBudgetError(
            f"the arms' weights take {format_size(sum(needed.values()))} together ({words}), "
            f"{format_size(free_bytes)} are free: name fewer --arms, or fewer --layers of a --shape"
        )


def _weight_bytes(job: ArmJob, manifest: Manifest) -> int:
    """What an arm surely holds: experts of ours, the whole checkpoint of stock."""
    if job.arm == "transformers":
        return sum(path.stat().st_size for path in Path(job.folder).glob("*.safetensors"))
    if job.arm == "accelerate":
        return job.cpu_expert_bytes
    copies = job.frames + (job.slots if job.arrangement == "emulated" else 0)
    return copies * manifest.layout.stride


# --- measuring ----------------------------------------------------------------------------------


def _measure(jobs: list[ArmJob], config: BenchConfig) -> list[_Arm]:
    """Every arm's segments, one arm after the other within each; segment 0 warms up."""
    with ExitStack() as opened:
        arms = [_Arm(opened.enter_context(ArmProcess(job)), {}, []) for job in jobs]
        _tell(f"opening {', '.join(job.arm for job in jobs)}")
        for arm in arms:
            _try(arm, arm.process.facts, arm.facts.update)
        for number in range(config.repeat + 1):
            _tell(f"repeat {number} of {config.repeat}" if number else "warming up")
            for arm in arms:
                if not arm.error:
                    _try(arm, partial(arm.process.segment, number), arm.segments.append)
        return arms


def _try(arm: _Arm, ask: Callable[[], Figures], keep: Callable[[Figures], None]) -> None:
    """One answer of an arm; an arm that cannot go on leaves the others alone."""
    try:
        keep(ask())
    except ArmError as error:
        arm.error = str(error)
        arm.process.close()


def _tell(line: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(line + "\n")


# --- telling ------------------------------------------------------------------------------------


def _figures(name: str, arm: _Arm, config: BenchConfig) -> Figures:
    if arm.error:
        return failed(name, arm.error)
    return figures_of(name, arm.facts, arm.segments[1:], config.pp, config.tg)


def _add_bounds(figures: list[Figures], config: BenchConfig, store: Path, manifest: Manifest) -> None:
    """Beside the arms that offload, where the resident arm has told what compute takes."""
    by_name = {each["arm"]: each for each in figures if "error" not in each}
    offloaded = [by_name[name] for name in ("offload", "oracle") if name in by_name]
    if not offloaded or "resident" not in by_name:
        return
    rate = config.link or config.rate or read_bytes_per_s(store, manifest)
    means = Means(manifest.layout.stride, rate, is_link=config.link is not None)
    for each in offloaded:
        add_bound(each, by_name["resident"], means, config.tg)


def _report(figures: list[Figures], config: BenchConfig, manifest: Manifest) -> Mapping[str, object]:
    return {
        "arms": figures,
        "gate_recall": config.gate_recall if config.routing else None,
        "routing": config.routing,
        "seed": config.seed,
        "model": config.shape or manifest.source,
        "layers": config.layers,
        "moe_layers": manifest.num_layers,
        "bits": manifest.layout.bits,
        "expert_bytes": manifest.layout.stride,
        "pp": config.pp,
        "tg": config.tg,
        "repeat": config.repeat,
        "rate": config.rate,
        "link": config.link,
        "threads": config.threads or next((each["threads"] for each in figures if "threads" in each), None),
        "cpus": os.cpu_count(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _VERSIONS}},
        "command": _command(),
    }


def _command() -> str:
    return shlex.join(["sidestage", *sys.argv[1:]])


def _title(config: BenchConfig, manifest: Manifest) -> str:
    total = format_size(manifest.expert_bytes_total)
    routed = f", routing of {Path(config.routing).name}" if config.routing else ""
    recall = f", gate recall {config.gate_recall:g}" if config.routing else ""
    return (
        f"{config.shape or manifest.model_type}, {manifest.num_layers} MoE layers, "
        f"{manifest.layout.bits} bit, {total} of experts; pp {config.pp}, tg {config.tg}, "
        f"mean ± deviation of {config.repeat}{routed}{recall}"
    )
