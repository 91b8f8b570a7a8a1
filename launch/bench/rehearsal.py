"""Rehearsal: an arm's model with its tokens and its routing; runs segments and tells their figures."""

import gc
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from transformers import Cache, DynamicCache, StaticCache

from launch.bench.arms import OFFLOADED
from launch.bench.job import ArmJob
from launch.bench.memory import peak_rss_bytes
from launch.bench.passes import check_length, run_decode, run_prompt, tokens_for
from launch.bench.routing import Routing, impose, recorded, sweep
from launch.bench.subject import Report, Subject, open_subject, shape_of

_LINK_BYTES = 64 * 2**20

#: Counters whose growth over a phase is told.
COUNTED = (
    "lookups",
    "hits",
    "late",
    "misses",
    "prefetch_issued",
    "prefetch_used",
    "prefetch_wasted_bytes",
    "stall_s",
    "bytes_read",
    "bytes_transferred",
    "evictions",
)


class Rehearsal:
    """Opens the arm's model; `opened` closes it. Raises with a sentence what cannot be measured."""

    def __init__(self, job: ArmJob, opened: ExitStack) -> None:
        self._job = job
        torch.set_grad_enabled(False)
        self._subject = open_subject(job, opened)
        model, tokenizer = self._subject.model, self._subject.tokenizer
        check_length(model, job.pp, job.tg)
        self._length = job.pp + job.tg
        tokens = tokens_for(model, tokenizer, self._length * job.num_segments)
        self._tokens = tokens.to(model.device)
        self._static: StaticCache | None = None
        if job.stage == 3:
            self._static = StaticCache(config=model.config, max_cache_len=self._length)
        num_experts, top_k = shape_of(Path(job.folder))
        if job.kind == "resident":
            _touch_all(self._subject, num_experts, top_k)
        self._routing = self._open_routing(num_experts, top_k)

    def facts(self) -> dict[str, object]:
        """What is true of the arm before anything is measured."""
        report = self._subject.report()
        chosen = ("kernel", "arrangement", "stage", "policy", "predictor", "lookahead")
        named = (*chosen, "slots", "frames", "bits")
        return {
            **{name: report[name] for name in named if name in report},
            "dtype": str(self._subject.model.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "num_moe_layers": len(self._subject.experts),
            "note": self._subject.note,
        }

    def _link_facts(self) -> dict[str, object]:
        """The best that a device's link does, for the bound of who offloads to it.

        Asked in a segment and not before, when other arms may be filling their slots over the same link.
        """
        if self._job.device != "cuda" or self._job.kind not in OFFLOADED:
            return {}
        from compute.link_probe import measure_link
        from compute.transports.cuda_driver import CudaDriver

        return {"link_bytes_per_s": measure_link(CudaDriver(), _LINK_BYTES).best}

    def run(self, number: int) -> dict[str, object]:
        """Segment `number`: seconds of both phases, and what the counters grew by in each.

        The first of them, which warms up, tells what the link can do.
        """
        link = {} if number else self._link_facts()
        first = number * self._length
        tokens = self._tokens[:, first : first + self._length]

        def announce(place: int, num_tokens: int) -> None:
            if self._routing:
                self._routing.show(self._first_of(number) + place, num_tokens)

        gc.collect()
        subject, job = self._subject, self._job
        before, start_s = subject.report(), time.process_time()
        cache = self._empty_cache()
        pp_s = run_prompt(subject.model, tokens[:, : job.pp], cache, announce)
        between, between_s = subject.report(), time.process_time()
        decoded = run_decode(subject.model, tokens, job.pp, cache, announce)
        end_s, after = time.process_time(), subject.report()
        return {
            **link,
            "pp_s": pp_s,
            "tg_s": decoded.seconds,
            "tg_device_s": decoded.device_s,
            "pp_cpu_s": between_s - start_s,
            "tg_cpu_s": end_s - between_s,
            "pp": _growth(before, between),
            "tg": _growth(between, after),
            "prediction_recall": after.get("prediction_recall"),
            "peak_rss_bytes": peak_rss_bytes(subject.loader_pid),
        }

    def _empty_cache(self) -> Cache:
        """A token's graph is recorded for one cache: the same for every segment."""
        if self._static is None:
            return DynamicCache(config=self._subject.model.config)
        self._static.reset()
        return self._static

    def _open_routing(self, num_experts: int, top_k: int) -> Routing | None:
        job, subject = self._job, self._subject
        if job.routing is None:
            return None
        recall = 1.0 if job.kind == "oracle" else job.gate_recall
        routing = recorded(
            Path(job.routing),
            num_experts,
            top_k,
            len(subject.experts),
            most_tokens=self._length * job.num_segments,
            recall=recall,
            seed=job.seed,
            device=subject.model.device,
        )
        if routing.num_tokens < self._length:
            raise ValueError(
                f"--routing {job.routing} has {routing.num_tokens} whole tokens, --pp and --tg ask for "
                f"{self._length}: pass fewer"
            )
        routing.impose_on(subject.experts, subject.routers)
        return routing

    def _first_of(self, number: int) -> int:
        """Where segment `number` begins in the trace; after the last whole one it begins again."""
        assert self._routing is not None
        return number % (self._routing.num_tokens // self._length) * self._length


def _touch_all(subject: Subject, num_experts: int, top_k: int) -> None:
    """Bring every expert into its slot, so that nothing is read any more."""
    told = sweep(num_experts, top_k)
    hooks = [impose(module, lambda num_rows: told[:num_rows]) for module in subject.experts]
    tokens = torch.zeros(1, len(told), dtype=torch.long, device=subject.model.device)
    subject.model(input_ids=tokens, use_cache=False, logits_to_keep=1)
    for hook in hooks:
        hook.remove()


def _growth(before: Report, after: Report) -> dict[str, int | float]:
    """By how much each counter grew."""
    growth: dict[str, int | float] = {}
    for name in COUNTED:
        old, new = before.get(name), after.get(name)
        if isinstance(old, (int, float)) and isinstance(new, (int, float)):
            growth[name] = new - old
    return growth
