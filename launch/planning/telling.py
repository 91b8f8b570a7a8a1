"""What a plan says: lines for people, an object for scripts, and TOML for `sidestage run --config`."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict

from launch.planning.config import PlanConfig
from launch.planning.forecast import Band
from launch.planning.proposal import Proposal
from protocol.units import format_size

Settings = Mapping[str, str | int]


def settings_of(config: PlanConfig, proposal: Proposal) -> Settings:
    """What to pass to `run`, by its settings' names. Empty where nothing fits."""
    if proposal.budget is None or proposal.advice is None:
        return {}
    chosen: dict[str, str | int] = {"model": config.model}
    if not proposal.subject.is_store:
        layout = proposal.subject.manifest.layout
        chosen["bits"] = layout.bits
        if config.group is not None and layout.bits != "none":
            chosen["group"] = layout.group
    if config.vram is not None:
        chosen |= {"arrangement": proposal.arrangement, "vram": _exact(config.vram)}
    if config.slots is not None or (config.vram is None and config.ram is None):
        chosen["slots"] = proposal.budget.num_slots
    if config.ram is not None:
        chosen["ram"] = _exact(config.ram)
    chosen["lookahead"] = proposal.advice.lookahead
    return chosen


def command_of(settings: Settings) -> str:
    """The command line that says the same."""
    words = ["sidestage", "run", str(settings["model"])]
    for name, value in settings.items():
        if name != "model":
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def toml_of(settings: Settings, proposal: Proposal) -> str:
    """Keys for every command that has them; a comment says what they rest on."""
    lines = [f"# {line}" for line in lines_of(proposal) if line]
    for name, value in settings.items():
        lines.append(f"{name} = {value}" if isinstance(value, int) else f"{name} = {_quoted(value)}")
    return "\n".join(lines) + "\n"


def lines_of(proposal: Proposal) -> list[str]:
    """For people."""
    lines = [*_model_lines(proposal), *_memory_lines(proposal)]
    if proposal.forecast and proposal.supposed and proposal.hits and proposal.advice:
        expected = proposal.forecast
        lines += [
            f"hit rate      {_percent(proposal.hits.band)} without prefetch ({proposal.hits.words})",
            f"link          {proposal.supposed.link_words}",
            f"compute       {proposal.supposed.compute_words}",
            f"expected      {_rate(expected.tokens_per_second)} tok/s, decode of one sequence "
            f"({_rate(expected.resident)} were every expert in a slot)",
            f"lookahead     {proposal.advice.lookahead}: {proposal.advice.reason.rpartition(', and ')[2]}",
        ]
    return lines


def as_json(config: PlanConfig, proposal: Proposal) -> dict[str, object]:
    """One object; what does not fit is null."""
    subject, manifest, budget = proposal.subject, proposal.subject.manifest, proposal.budget
    settings = settings_of(config, proposal)
    return {
        "model": subject.name,
        "model_type": manifest.model_type,
        "moe_layers": manifest.num_layers,
        "experts": manifest.num_experts,
        "top_k": manifest.top_k,
        "bits": manifest.layout.bits,
        "expert_bytes": manifest.layout.stride,
        "expert_bytes_total": manifest.expert_bytes_total,
        "dense_bytes": subject.dense_bytes,
        "context": subject.context,
        "kv_bytes": subject.kv_bytes,
        "download_bytes": subject.download_bytes,
        "fits": budget is not None,
        "problem": proposal.problem or None,
        "arrangement": proposal.arrangement,
        "arrangement_reason": proposal.arrangement_reason,
        "slots": budget.num_slots if budget else None,
        "slots_reason": budget.reason if budget else None,
        "frames": budget.num_frames if budget else None,
        "arena_bytes": budget.num_frames * manifest.layout.stride if budget else None,
        "host_bytes": proposal.host_bytes if budget else None,
        "device_bytes": proposal.device_bytes if budget else None,
        "hit_rate": asdict(proposal.hits.band) if proposal.hits else None,
        "hit_rate_origin": proposal.hits.words if proposal.hits else None,
        "link_origin": proposal.supposed.link_words if proposal.supposed else None,
        "compute_origin": proposal.supposed.compute_words if proposal.supposed else None,
        "tokens_per_second": asdict(proposal.forecast.tokens_per_second) if proposal.forecast else None,
        "resident_tokens_per_second": asdict(proposal.forecast.resident) if proposal.forecast else None,
        "lookahead": proposal.advice.lookahead if proposal.advice else None,
        "notices": list(proposal.notices),
        "settings": dict(settings),
        "command": command_of(settings) if settings else None,
    }


def _model_lines(proposal: Proposal) -> list[str]:
    subject, manifest = proposal.subject, proposal.subject.manifest
    layout = manifest.layout
    bits = "unquantized" if layout.bits == "none" else f"{layout.bits} bit in groups of {layout.group}"
    longest = f" of {subject.longest_context}" if subject.longest_context else ""
    download = f"; {format_size(subject.download_bytes)} of weights to read" if subject.download_bytes else ""
    experts = f"{format_size(manifest.expert_bytes_total)}, {format_size(layout.stride)} each, {bits}"
    return [
        f"model         {manifest.model_type}, {manifest.num_layers} MoE layers of {manifest.num_experts} "
        f"experts, top-{manifest.top_k}{download}",
        f"experts       {experts}",
        f"dense weights {format_size(subject.dense_bytes)}",
        f"KV cache      {format_size(subject.kv_bytes)} for {subject.context}{longest} tokens, one sequence",
    ]


def _memory_lines(proposal: Proposal) -> list[str]:
    budget, stride = proposal.budget, proposal.subject.manifest.layout.stride
    lines = [f"arrangement   {proposal.arrangement}: {proposal.arrangement_reason}"]
    if budget is None:
        return [*lines, f"does not fit  {proposal.problem}"]
    num_keys = proposal.subject.manifest.num_keys
    lines += [
        f"slots         {budget.num_slots} of {num_keys} experts ({budget.num_slots / num_keys:.0%}): "
        f"{budget.reason}",
        f"arena         {budget.num_frames} frames, {format_size(budget.num_frames * stride)}",
    ]
    device = f", {format_size(proposal.device_bytes)} on the device" if proposal.device_bytes else ""
    return [*lines, f"memory        {format_size(proposal.host_bytes)} of host memory in all{device}"]


def _exact(num_bytes: int) -> str:
    """As `--ram` takes it, in the largest unit that divides it."""
    units = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1))
    return next(f"{num_bytes // size}{unit}" for unit, size in units if num_bytes % size == 0)


def _rate(band: Band) -> str:
    return f"{band.likely:.3g} ({band.low:.3g} to {band.high:.3g})"


def _percent(band: Band) -> str:
    return f"{band.likely:.0%} ({band.low:.0%} to {band.high:.0%})"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
