"""What an arm measures: a model, its experts and routers in the order of the layers, and its counters."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
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
    match job.kind:
        case "transformers":
            return _stock(job, {"device_map": job.device} if job.device == "cuda" else {})
        case "accelerate" if job.device == "cuda":
            return _in_host_memory(job)
        case "accelerate":
            return _on_disk(job, opened)
        case _:
            return _ours(job, opened)


def _ours(job: ArmJob, opened: ExitStack) -> Subject:
    """A loader of our own, so that its rate can be stated, and a client of it."""
    store = Path(job.folder)
    loader = opened.enter_context(
        start_loader(
            store,
            num_frames=job.frames,
            rate=job.rate,
            direct_io="on" if job.direct_io else "off",
            timeout_s=job.timeout,
        )
    )
    offloaded = opened.enter_context(
        offload(
            store,
            connect=loader.endpoint,
            slots=job.slots,
            arrangement=job.arrangement,
            device=job.device,
            stage=job.stage,
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
    on_disk = subject.experts[num_kept:]
    where = "from disk or page cache, whichever the system chooses"
    if job.rate is not None:
        charge(on_disk, job.rate)
        where = "from the page cache, and each expert's bytes are waited for at --rate"
    note = f"{num_kept} of {len(subject.experts)} layers' experts stay in memory, the others are read {where}"
    return replace(subject, note=note)


def _in_host_memory(job: ArmJob) -> Subject:
    """accelerate's CPU offload: layers of experts in host memory, as many on the device as slots take."""
    device_map, num_kept = _device_map(Path(job.folder), job.cpu_expert_bytes, kept="cuda", others="cpu")
    subject = _stock(job, {"device_map": device_map})
    note = (
        f"{num_kept} of {len(subject.experts)} layers' experts stay on the device, the others in host memory"
    )
    return replace(subject, note=note)


def charge(modules: list[nn.Module], rate: int) -> None:
    """Before a module runs, wait as long as `rate` takes for the experts that its tokens use.

    accelerate maps a whole layer and touches what is used; this is what a disk of that rate costs.
    """
    for module in modules:
        expert_bytes = sum(2 * parameter[0].numel() for parameter in module.parameters())

        def wait(_: nn.Module, args: tuple[Tensor, ...], expert_bytes: int = expert_bytes) -> None:
            time.sleep(len(set(args[1].flatten().tolist())) * expert_bytes / rate)

        module.register_forward_pre_hook(wait)


def _device_map(
    checkpoint: Path, expert_bytes: int, kept: str = "cpu", others: str = "disk"
) -> tuple[dict[str, str], int]:
    """Where each module goes, and how many layers' experts stay with the rest: the first ones that fit."""
    model = study(checkpoint).model
    found = {name: m for name, m in model.named_modules() if experts.is_experts_module(m)}
    layer_bytes = sum(2 * parameter.numel() for parameter in next(iter(found.values())).parameters())
    num_kept = min(expert_bytes // layer_bytes, len(found))
    elsewhere = set(list(found)[num_kept:])
    holders = [name for name, module in model.named_modules() if module._parameters or module._buffers]
    return {name: others if name in elsewhere else kept for name in holders}, num_kept


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
