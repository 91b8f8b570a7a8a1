"""The proposal: what a run of this model on such a machine would look like, and how fast it may be.

Uses the arithmetic of `run` itself: the same choice of arrangement, the same budget. Advises and
forbids nothing: what does not fit is told with the sentence that `run` would end with.
"""

from dataclasses import dataclass, replace

from compute.arrangement import HostMemory, choose_arrangement
from compute.budget import Asked, Budget, plan_budget
from compute.timing_model import Link
from launch.lab.advice import Advice, Cache, Seen, advise
from launch.planning.config import PlanConfig
from launch.planning.curves import Curve, curve_of, most_similar, shipped_curves
from launch.planning.forecast import NUM_TOKENS, Band, Forecast, Work, forecast
from launch.planning.speeds import Supposed, suppose
from launch.planning.subject import Subject
from protocol.errors import MemoryBudgetError
from protocol.units import format_size

#: Beside weights, cache and frames: Python, torch and the loader.
PROCESS_BYTES = 700 * 2**20
#: What another model's routing may differ by, where no curve is of this model's type.
STRANGER = 0.08


@dataclass(frozen=True, slots=True)
class Hits:
    """Hit rates to expect, and whose curve says so."""

    band: Band
    words: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """`budget` and what rests on it are None where it does not fit; `problem` then says why.

    `host_bytes` and `device_bytes` are all that a run takes of either memory, in full.
    """

    subject: Subject
    arrangement: str
    arrangement_reason: str
    budget: Budget | None
    problem: str
    host_bytes: int
    device_bytes: int
    hits: Hits | None
    supposed: Supposed | None
    forecast: Forecast | None
    advice: Advice | None
    notices: tuple[str, ...]


def propose(config: PlanConfig, subject: Subject, free_bytes: int) -> Proposal:
    """`free_bytes`: this machine's free memory, which counts where no --ram is said."""
    manifest = subject.manifest
    device = "cpu" if config.vram is None else "cuda"
    free = max(free_bytes, config.ram or 0)
    arrangement, reason = choose_arrangement("auto", device, manifest, HostMemory(config.ram, free))
    asked = Asked(
        arrangement=arrangement,
        ram=config.ram,
        slots=config.slots,
        free_bytes=free,
        vram=config.vram,
        free_vram=config.vram or 0,
    )
    proposal = Proposal(subject, arrangement, reason, None, "", 0, 0, None, None, None, None, ())
    try:
        budget = plan_budget(manifest, asked)
    except (MemoryBudgetError, ValueError) as error:
        return replace(proposal, problem=str(error))
    return _filled(replace(proposal, budget=budget), budget, config, device, free_bytes)


def _filled(proposal: Proposal, budget: Budget, config: PlanConfig, device: str, free_bytes: int) -> Proposal:
    """With what follows from the budget."""
    subject, work = proposal.subject, work_of(proposal.subject)
    supposed = suppose(subject, device, config.link, config.compute, config.threads)
    hits = hits_of(subject, budget.num_slots, curve_of(config.trace, "") if config.trace else None)
    compute_us = forecast(work, supposed.speeds, hits.band, 0).layer_us
    advice = _advice(subject, budget.num_slots, hits.band, supposed, compute_us)
    host, on_device = _memory(subject, budget, device)
    return replace(
        proposal,
        host_bytes=host,
        device_bytes=on_device,
        hits=hits,
        supposed=supposed,
        forecast=forecast(work, supposed.speeds, hits.band, advice.lookahead),
        advice=advice,
        notices=(*budget.notices, *_notices(host, free_bytes)),
    )


def work_of(subject: Subject) -> Work:
    """What one token of the model does."""
    manifest = subject.manifest
    return Work(manifest.num_layers, manifest.top_k, manifest.layout.stride, subject.worked_bytes)


def hits_of(subject: Subject, num_slots: int, recorded: Curve | None) -> Hits:
    """What share of lookups finds its expert in one of `num_slots`. `recorded`: the user's own trace."""
    manifest = subject.manifest
    curve = recorded or most_similar(
        shipped_curves(), manifest.model_type, manifest.num_experts, manifest.top_k
    )
    cold, warm = curve.at(num_slots / manifest.num_keys)
    if num_slots == manifest.num_keys:
        return Hits(Band(1.0, 1.0, 1.0), "every expert has a slot")
    is_kin = recorded is not None or curve.model_type == manifest.model_type
    margin = 0.0 if is_kin else STRANGER
    band = Band(max(cold - margin, 0.0), (cold + warm) / 2, min(warm + margin, 1.0))
    whose = "the trace" if recorded else "the same type" if is_kin else "the most similar model measured"
    return Hits(band, f"lru on {curve.name}, {whose}, {curve.num_tokens} tokens")


def _advice(subject: Subject, num_slots: int, hits: Band, supposed: Supposed, layer_us: float) -> Advice:
    """The laboratory's, from the likely figures."""
    manifest = subject.manifest
    num_steps = NUM_TOKENS * manifest.num_layers
    return advise(
        Cache(manifest.num_layers, manifest.num_experts, manifest.top_k, num_slots),
        {"lru": hits.likely},
        Seen(NUM_TOKENS, num_steps, num_steps * manifest.top_k),
        Link(supposed.speeds.link.likely, manifest.layout.stride, layer_us),
    )


def _memory(subject: Subject, budget: Budget, device: str) -> tuple[int, int]:
    """(host, device) bytes in all."""
    stride = subject.manifest.layout.stride
    arena = budget.num_frames * stride
    model = subject.dense_bytes + subject.kv_bytes
    if device == "cpu":
        return PROCESS_BYTES + arena + model, 0
    return PROCESS_BYTES + arena, (budget.num_slots + budget.num_transit) * stride + model


def _notices(host_bytes: int, free_bytes: int) -> list[str]:
    if host_bytes <= free_bytes:
        return []
    needed, free = format_size(host_bytes), format_size(free_bytes)
    return [f"{needed} of host memory are needed in all, and {free} are free on this machine"]
