"""Benchmark: where the microseconds of a decoded token go, resident and with half of the experts in slots.

The shipped model, one thread, its processor time. A part is charged with its own time alone; medians
of segments, both ways in turn. The long way is what a token takes when one of its experts is absent.
"""

import statistics
import time
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from support.stopwatch import Stopwatch
from transformers import DynamicCache

from compute import Offloaded, offload
from compute.client import LoaderClient
from compute.hit_path import HitPath
from compute.kernels.cpu import CpuKernel
from compute.policies.lru import Lru
from compute.predictors.gate import GateLookahead
from compute.prefetch import PrefetchPlanner
from compute.residency import Residency
from compute.rows import OneToken
from compute.stage import Stage
from compute.supply import Supply
from compute.transports.direct import DirectTransport
from launch.bench.passes import run_decode, run_prompt, tokens_for

pytestmark = pytest.mark.bench

PROMPT, DECODE, SEGMENTS = 64, 32, 9

PARTS: dict[str, list[tuple[type, str]]] = {
    "the C kernel": [(CpuKernel, "_run")],
    "the call into C": [(CpuKernel, "run_group")],
    "sums, addresses": [(HitPath, "run"), (DirectTransport, "addresses")],
    "rows of the long way": [(OneToken, name) for name in ("places", "weighted", "combine")],
    "lookups": [
        (Residency, "access"),
        (Residency, "note_hits"),
        (Residency, "slots_of"),
        (Supply, "request"),
        (Supply, "hit"),
    ],
    "policy": [(Lru, "on_access")],
    "stage": [(Stage, name) for name in ("run_layer", "_run_hits", "_run_any", "_compute")],
    "gate": [(GateLookahead, "predict")],
    "plan, room for guesses": [
        (Stage, "_look_ahead"),
        (PrefetchPlanner, "plan"),
        (Supply, "guess"),
        (Residency, "speculate"),
    ],
    "messages": [(DirectTransport, "submit"), (LoaderClient, "fetch")],
    "arrivals": [
        (Supply, "settle_arrivals"),
        (DirectTransport, "poll"),
        (LoaderClient, "completed"),
    ],
    "waiting": [(Supply, "_wait"), (DirectTransport, "wait"), (LoaderClient, "wait")],
}


WAYS = ("long", "short")

Spent = dict[str, dict[str, list[float]]]


@pytest.mark.parametrize(("slots", "lookahead"), [(192, 0), (96, 0), (96, 1)])
def test_where_the_microseconds_go(store_4bit: Path, slots: int, lookahead: int) -> None:
    spent: Spent = {way: defaultdict(list) for way in WAYS}
    calls: dict[str, dict[str, int]] = {}
    with (
        offload(
            store_4bit, slots=slots, threads=1, lookahead=lookahead, predictor="gate" if lookahead else "none"
        ) as offloaded,
        Stopwatch(PARTS) as watch,
    ):
        hit_path = offloaded.stage._hit_path
        for number in range(-1, SEGMENTS):
            for way in WAYS:
                offloaded.stage._hit_path = hit_path if way == "short" else None
                cpu_us = _decode(offloaded, number + 1, watch) * 1e6 / DECODE
                if number >= 0:
                    _note(spent[way], cpu_us, watch)
                    calls[way] = dict(watch.calls)
    _tell(f"{slots} slots, lookahead {lookahead}", spent, calls)


def _note(spent: dict[str, list[float]], cpu_us: float, watch: Stopwatch) -> None:
    inside = {part: ns / 1e3 / DECODE for part, ns in watch.spent_ns.items()}
    ours_us = sum(inside.values())
    for part, microseconds in {"transformers": cpu_us - ours_us, "ours": ours_us, **inside}.items():
        spent[part].append(microseconds)


def _tell(name: str, spent: Spent, calls: dict[str, dict[str, int]]) -> None:
    print(f"\n{name:28} us a token: long  short     calls a token: long  short")
    for part in ("transformers", "ours", *PARTS):
        figures = [statistics.median(spent[way][part]) if spent[way][part] else 0.0 for way in WAYS]
        counts = [calls[way].get(part, 0) / DECODE for way in WAYS]
        if any(figures):
            print(f"{part:28} {figures[0]:16.0f} {figures[1]:6.0f} {counts[0]:24.1f} {counts[1]:6.1f}")
    assert all(spent[way]["ours"] for way in WAYS)


@torch.no_grad()
def _decode(offloaded: Offloaded, number: int, watch: Stopwatch) -> float:
    """Processor seconds of one segment's decode; the watch is cleared after its prompt."""
    length = PROMPT + DECODE
    tokens = tokens_for(offloaded.model, offloaded.tokenizer, length * (SEGMENTS + 1))
    tokens = tokens[:, number * length : (number + 1) * length]
    cache = DynamicCache(config=offloaded.model.config)
    run_prompt(offloaded.model, tokens[:, :PROMPT], cache, lambda place, count: None)
    watch.clear()
    started_s = time.thread_time()
    run_decode(offloaded.model, tokens, PROMPT, cache, lambda place, count: None)
    return time.thread_time() - started_s
