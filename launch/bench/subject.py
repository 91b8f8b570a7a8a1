"""What an arm measures: a model, its experts and routers in the order of the layers, and its counters."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from compute import experts, offload
from compute.loader_process import start_loader
from launch.bench.job import ArmJob
from loader.anatomy import study
from protocol.manifest import MANIFEST_FILE, Manifest

Report = Mapping[str, int | float | str | None]


@dataclass(frozen=True, slots=True)
class Subject:
    """`loader_pid` is 0 and `report` empty for stock models. `note`: what the reader should know."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    experts: list[nn.Module]
    routers: list[nn.Module | None]
    report: Callable[[], Report]
    loader_pid: int
    note: str


def open_subject(job: ArmJob, opened: ExitStack) -> Subject:
    """The model of the job's arm; `opened` closes it. Raises with a sentence what cannot be opened."""
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    match job.arm:
        case "transformers":
            return _stock(job, {})
        case "accelerate":
            return _on_disk(job, opened)
        case _:
            return _ours(job, opened)


def _ours(job: ArmJob, opened: ExitStack) -> Subject:
    """A loader of our own, so that its rate can be stated, and a client of it."""
    store = Path(job.folder)
    loader = opened.enter_context(
        start_loader(store, num_frames=job.frames, rate=job.rate, timeout_s=job.timeout)
    )
    offloaded = opened.enter_context(
        offload(
            store,
            connect=loader.endpoint,
            slots=job.slots,
            arrangement=job.arrangement,
            link=job.link,
            policy=job.policy,
            predictor="gate" if job.lookahead else "none",
            lookahead=job.lookahead,
            threads=job.threads,
            timeout=job.timeout,
        )
    )
    layers = offloaded.moe_layers
    return Subject(
        model=offloaded.model,
        tokenizer=offloaded.tokenizer,
        experts=[layer.experts for layer in layers],
        routers=[None if layer.gate_reason else layer.router for layer in layers],
        report=offloaded.report,
        loader_pid=loader.pid,
        note="; ".join(offloaded.notices),
    )


def _on_disk(job: ArmJob, opened: ExitStack) -> Subject:
    """accelerate's disk offload: whole layers of experts on disk, as many in memory as fit."""
    folder = opened.enter_context(TemporaryDirectory(prefix="sidestage-accelerate-"))
    device_map, num_kept = _device_map(Path(job.folder), job.cpu_expert_bytes)
    subject = _stock(job, {"device_map": device_map, "offload_folder": folder})
    num_layers = len(subject.experts)
    note = f"{num_kept} of {num_layers} layers' experts in memory; no --rate holds its reads back"
    return replace(subject, note=note)


def _device_map(checkpoint: Path, cpu_expert_bytes: int) -> tuple[dict[str, str], int]:
    """Where each module goes, and how many layers' experts stay in memory: the first ones that fit."""
    model = study(checkpoint).model
    found = {name: m for name, m in model.named_modules() if experts.is_experts_module(m)}
    layer_bytes = sum(2 * parameter.numel() for parameter in next(iter(found.values())).parameters())
    num_kept = min(cpu_expert_bytes // layer_bytes, len(found))
    on_disk = set(list(found)[num_kept:])
    holders = [name for name, module in model.named_modules() if module._parameters or module._buffers]
    return {name: "disk" if name in on_disk else "cpu" for name in holders}, num_kept


def _stock(job: ArmJob, placement: Mapping[str, object]) -> Subject:
    """transformers as it comes, in bfloat16, with its fastest experts."""
    model = AutoModelForCausalLM.from_pretrained(
        job.folder,
        dtype=torch.bfloat16,
        experts_implementation="grouped_mm",
        local_files_only=True,
        **placement,
    ).eval()
    found = [module for module in model.modules() if experts.is_experts_module(module)]
    has_words = (Path(job.folder) / "tokenizer.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(job.folder, local_files_only=True) if has_words else None
    return Subject(model, tokenizer, found, [None] * len(found), dict, 0, "")


def shape_of(folder: Path) -> tuple[int, int]:
    """(num_experts, top_k) of the store or checkpoint in `folder`."""
    if (folder / MANIFEST_FILE).is_file():
        manifest = Manifest.read(folder)
        return manifest.num_experts, manifest.top_k
    anatomy = study(folder)
    return anatomy.num_experts, anatomy.top_k
