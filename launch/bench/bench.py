"""`sidestage bench`: opens every arm, measures them in turn, and tells their figures beside the bounds.

Starts processes and reads manifests; imports torch only to plan, after the measuring.
"""

import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from launch.bench.arm_process import ArmError, ArmProcess
from launch.bench.arms import STOCK, Arm, arm_of
from launch.bench.bandwidth import read_bytes_per_s
from launch.bench.config import BenchConfig
from launch.bench.figures import Figures, Means, Segment, add_bound, failed, figures_of
from launch.bench.folders import checkpoint_of, store_of
from launch.bench.job import ArmJob
from launch.bench.jobs import plan_jobs
from launch.bench.table import print_figures
from launch.output import check_place, write_json
from loader.direct_io import Reading
from protocol.arena import available_memory_bytes
from protocol.manifest import MANIFEST_FILE, Manifest
from protocol.units import format_size

_VERSIONS = ("sidestage", "torch", "transformers", "accelerate", "numpy")


@dataclass(slots=True)
class _Measured:
    """One arm on its way: what it told of itself, its segments, and why it stopped."""

    process: ArmProcess
    facts: Figures
    segments: list[Segment]
    error: str = ""


def bench(config: BenchConfig) -> int:
    """Measure, print, write; the exit status: 1 when an arm could not run. Raises with a sentence."""
    check_place("--json", config.json)
    store, manifest = store_of(config)
    chosen = [arm_of(name, config.lookahead) for name in config.arms or _default_arms(config)]
    checkpoint = checkpoint_of(config) if any(arm.kind in STOCK for arm in chosen) else None
    jobs, reading = plan_jobs(chosen, config, store, manifest, checkpoint, available_memory_bytes())
    arms = _measure(jobs, config, reading)
    figures = [_figures(arm, measured, config) for arm, measured in zip(chosen, arms)]
    _add_bounds(figures, config, store, manifest, reading)
    compared = _predicted(figures, config, store)
    if config.json is not None:
        write_json(config.json, json.dumps(_report(figures, config, manifest, reading)))
    out = sys.stderr if config.json == "-" else sys.stdout
    print_figures(_title(config, manifest, reading), figures, out)
    out.writelines(f"{line}\n" for line in compared)
    return 1 if any("error" in each for each in figures) else 0


def _default_arms(config: BenchConfig) -> tuple[str, ...]:
    """Ours, and stock transformers where its checkpoint is there already."""
    is_store = config.model is not None and (Path(config.model) / MANIFEST_FILE).is_file()
    if config.shape is not None or is_store:
        return ("resident", "offload")
    return ("resident", "offload", "transformers")


# --- measuring ----------------------------------------------------------------------------------


def _measure(jobs: list[ArmJob], config: BenchConfig, reading: Reading) -> list[_Measured]:
    """Every arm's segments, one arm after the other within each; segment 0 warms up."""
    with ExitStack() as opened:
        arms = [
            _Measured(opened.enter_context(ArmProcess(replace(job, direct_io=reading.is_direct))), {}, [])
            for job in jobs
        ]
        _tell(f"opening {', '.join(job.arm for job in jobs)}")
        for arm in arms:
            _try(arm, arm.process.facts, arm.facts.update)
        for number in range(config.repeat + 1):
            _tell(f"repeat {number} of {config.repeat}" if number else "warming up")
            for arm in arms:
                if not arm.error:
                    _try(arm, partial(arm.process.segment, number), arm.segments.append)
        return arms


def _try(arm: _Measured, ask: Callable[[], Figures], keep: Callable[[Figures], None]) -> None:
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


def _figures(arm: Arm, measured: _Measured, config: BenchConfig) -> Figures:
    if measured.error:
        return failed(arm.name, measured.error)
    warmed_up, *segments = measured.segments
    link = {name: value for name, value in warmed_up.items() if name == "link_bytes_per_s"}
    return figures_of(arm.name, measured.facts | link, segments, config.pp, config.tg)


def _add_bounds(
    figures: list[Figures], config: BenchConfig, store: Path, manifest: Manifest, reading: Reading
) -> None:
    """Beside the arms that offload, where a resident arm (of the same stage, if there is one) has told c."""
    measured = [each for each in figures if "error" not in each]
    residents = {arm.stage: each for each in measured if (arm := arm_of(each["arm"], 0)).kind == "resident"}
    offloaded = [each for each in measured if arm_of(each["arm"], 0).offloads]
    if not offloaded or not residents:
        return
    stated: float = config.link or config.rate or 0
    if not stated and config.device == "cpu":
        stated = read_bytes_per_s(store, manifest, reading.is_direct)
    is_link = config.device == "cuda" or config.link is not None
    for each in offloaded:
        means = Means(manifest.layout.stride, each.get("link_bytes_per_s", stated), is_link)
        resident = residents.get(arm_of(each["arm"], 0).stage, next(iter(residents.values())))
        add_bound(each, resident, means, config.tg)


def _predicted(figures: list[Figures], config: BenchConfig, store: Path) -> list[str]:
    """What `plan` would have said; it knows no CUDA device's compute yet."""
    if config.device == "cuda":
        return []
    from launch.planning.prediction import add_predictions

    return add_predictions(figures, store, config.routing)


def _report(
    figures: list[Figures], config: BenchConfig, manifest: Manifest, reading: Reading
) -> Mapping[str, object]:
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
        "device": config.device,
        "pp": config.pp,
        "tg": config.tg,
        "repeat": config.repeat,
        "rate": config.rate,
        "link": config.link,
        "reads": "direct" if reading.is_direct else "page cache",
        "reads_reason": reading.reason,
        "threads": config.threads or next((each["threads"] for each in figures if "threads" in each), None),
        "cpus": os.cpu_count(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _VERSIONS}},
        "command": _command(),
    }


def _version(name: str) -> str:
    """None of sidestage's own where it runs from its source tree, nor of accelerate without that arm."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _command() -> str:
    return shlex.join(["sidestage", *sys.argv[1:]])


def _title(config: BenchConfig, manifest: Manifest, reading: Reading) -> str:
    total = format_size(manifest.expert_bytes_total)
    routed = f", routing of {Path(config.routing).name}" if config.routing else ""
    recall = f", gate recall {config.gate_recall:g}" if config.routing else ""
    return (
        f"{config.shape or manifest.model_type}, {manifest.num_layers} MoE layers, "
        f"{manifest.layout.bits} bit, {total} of experts; pp {config.pp}, tg {config.tg}, "
        f"mean ± deviation of {config.repeat}{routed}{recall}; experts are read {reading.words}"
    )
