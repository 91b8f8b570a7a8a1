"""From settings to a plan: which store, which arrangement, how many slots and frames, and why.

Reads a manifest and the machine's free memory; may have a checkpoint converted; starts no loader
and imports no torch.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path

from compute.arrangement import HostMemory, choose_arrangement, choose_device
from compute.budget import Asked, Budget, plan_budget, plan_frames
from compute.cache_folder import find_store
from compute.cuda_presence import has_cuda
from compute.pin_limit import pin_limit
from launch.config import RunConfig
from launch.job import Job
from launch.own_loader import LoaderPlan
from protocol.arena import available_memory_bytes
from protocol.manifest import Manifest
from protocol.units import format_size

SHIPPED_MODEL = Path(__file__).parent / "model"

_MAX_SEED = 2**31


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to run. `loader` is the one that we start; None: there is one.

    `headline` tells the user what was chosen, `notices` what else there is to know; `reason` and
    `slots_reason` are "" where the compute process decides.
    """

    job: Job
    loader: LoaderPlan | None
    headline: str
    reason: str
    slots_reason: str
    notices: tuple[str, ...]


def plan_run(config: RunConfig, prompt: str) -> Plan:
    """Raises ValueError, ModelError, StoreError or MemoryBudgetError with a sentence."""
    if config.connect is not None:
        return _plan_attached(config, config.connect, prompt)
    store = find_store(config.model or SHIPPED_MODEL, config.quantization)
    manifest = Manifest.read(store)
    manifest.check_shards(store)
    device = choose_device(config.device, config.arrangement, has_cuda(), config.vram, config.stage)
    free_bytes = available_memory_bytes()
    host = HostMemory(config.ram, free_bytes, pin_bytes=pin_limit())
    arrangement, reason = choose_arrangement(config.arrangement, device, manifest, host)
    asked = Asked(
        arrangement=arrangement,
        ram=config.ram,
        slots=config.slots,
        free_bytes=free_bytes,
    )
    if device == "cuda":
        return _plan_for_device(config, prompt, store, manifest, asked, reason)
    budget = plan_budget(manifest, asked)
    return Plan(
        job=_job(config, prompt, str(store), "", arrangement, budget.num_slots),
        loader=LoaderPlan(store, budget.num_frames, config.direct_io),
        headline=_headline(manifest, arrangement, budget, reason),
        reason=reason,
        slots_reason=budget.reason,
        notices=budget.notices,
    )


def _plan_attached(config: RunConfig, endpoint: str, prompt: str) -> Plan:
    """The loader's arena is there already: the compute process sees how much of it is free."""
    store = str(find_store(config.model, config.quantization)) if config.model else ""
    return Plan(
        job=_job(config, prompt, store, endpoint, config.arrangement, config.slots),
        loader=None,
        headline=f"attaching to the loader at {endpoint}",
        reason="",
        slots_reason="",
        notices=(),
    )


def _plan_for_device(
    config: RunConfig, prompt: str, store: Path, manifest: Manifest, asked: Asked, reason: str
) -> Plan:
    """Frames are planned here; what the device holds, and with it the slots, the compute process sees."""
    frames = plan_frames(manifest, asked)
    slots = "slots as the device's free memory allows"
    if config.slots or config.vram:
        slots = (
            f"{config.slots} slots" if config.slots else f"slots in --vram {format_size(config.vram or 0)}"
        )
    return Plan(
        job=_job(config, prompt, str(store), "", config.arrangement, config.slots),
        loader=LoaderPlan(store, frames, config.direct_io),
        headline=f"{_model_words(manifest)}; {frames} frames, {slots}; {asked.arrangement} ({reason})",
        reason="",
        slots_reason="",
        notices=(),
    )


def _job(
    config: RunConfig, prompt: str, store: str, endpoint: str, arrangement: str, slots: int | None
) -> Job:
    return Job(
        store=store,
        endpoint=endpoint,
        prompt=prompt,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        repetition_penalty=config.repetition_penalty,
        seed=secrets.randbelow(_MAX_SEED) if config.seed is None else config.seed,
        device=config.device,
        dtype=config.dtype,
        threads=config.threads,
        bits=config.bits,
        group=config.group,
        fast=config.fast,
        arrangement=arrangement,
        slots=slots,
        vram=config.vram,
        stage=config.stage,
        policy=config.policy,
        predictor=config.predictor,
        lookahead=config.layers_ahead,
        link=config.link,
        timeout=config.timeout,
        streams=not config.is_quiet,
        timeline=None,
    )


def _headline(manifest: Manifest, arrangement: str, budget: Budget, reason: str) -> str:
    slots = f"{budget.num_slots} in slots ({budget.reason})"
    return f"{_model_words(manifest)}; {slots}; {arrangement} ({reason})"


def _model_words(manifest: Manifest) -> str:
    bits = "unquantized" if manifest.layout.bits == "none" else f"{manifest.layout.bits} bit"
    total = format_size(manifest.expert_bytes_total)
    return f"{manifest.model_type}, {manifest.num_keys} experts, {bits}, {total}"
