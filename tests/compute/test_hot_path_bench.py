"""Benchmark: where the microseconds of a decoded token go, resident and with half of the experts in slots.

The shipped model, one thread, its processor time. A part is charged with its own time alone; medians
of segments. The long way is what a token takes when one of its experts is absent.
"""

import statistics
import time
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from support.stopwatch import Stopwatch

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
    "lookups": [(Residency, "access"), (Residency, "hit_all"), (Supply, "request"), (Supply, "hit")],
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


@pytest.mark.parametrize(("slots", "lookahead"), [(192, 0), (96, 0), (96, 1)])
@pytest.mark.parametrize("is_short", [False, True], ids=["long way", "short way"])
def test_where_the_microseconds_go(store_4bit: Path, slots: int, lookahead: int, is_short: bool) -> None:
    with offload(
        store_4bit, slots=slots, threads=1, lookahead=lookahead, predictor="gate" if lookahead else "none"
    ) as offloaded:
        if not is_short:
            offloaded.stage._hit_path = None
        way = "short way" if is_short else "long way"
        _tell(f"{slots} slots, lookahead {lookahead}, {way}", offloaded)


@torch.no_grad()
def _tell(name: str, offloaded: Offloaded) -> None:
    spent: defaultdict[str, list[float]] = defaultdict(list)
    calls: dict[str, int] = {}
    with Stopwatch(PARTS) as watch:
        for number in range(-2, SEGMENTS):
            cpu_us = _decode(offloaded, number + 2, watch) * 1e6 / DECODE
            if number >= 0:
                inside = {part: ns / 1e3 / DECODE for part, ns in watch.spent_ns.items()}
                spent["all"].append(cpu_us)
                spent["transformers"].append(cpu_us - sum(inside.values()))
                for part, microseconds in inside.items():
                    spent[part].append(microseconds)
                calls = dict(watch.calls)
    print(f"\n{name:32} us a token   calls a token")
    for part in ("all", "transformers", *PARTS):
        if part in spent:
            print(f"{part:32} {statistics.median(spent[part]):10.0f} {calls.get(part, 0) / DECODE:15.1f}")
    assert spent["all"]


def _decode(offloaded: Offloaded, number: int, watch: Stopwatch) -> float:
    """Processor seconds of one segment's decode; the watch is cleared after its prompt."""
    length = PROMPT + DECODE
    tokens = tokens_for(offloaded.model, offloaded.tokenizer, length * (SEGMENTS + 2))
    tokens = tokens[:, number * length : (number + 1) * length]
    cache, _ = run_prompt(offloaded.model, tokens[:, :PROMPT], lambda place, count: None)
    watch.clear()
    started_s = time.thread_time()
    run_decode(offloaded.model, tokens, PROMPT, cache, lambda place, count: None)
    return time.thread_time() - started_s
