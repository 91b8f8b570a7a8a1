"""Behind a link, the speculative gate saves stall where transfers take about as long as compute."""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from compute import Offloaded, offload

QUARTER = 48
NUM_PAIRS = 7
PROMPT = "Once upon a time there was a king who"


@dataclass(frozen=True, slots=True)
class Cost:
    """What one generation cost."""

    misses: int
    stall_s: float
    bytes_moved: int


def _emulated(store: Path, lookahead: int, link: int) -> Offloaded:
    return offload(store, arrangement="emulated", slots=QUARTER, link=link, lookahead=lookahead, threads=1)


def _generate(offloaded: Offloaded, new_tokens: int) -> Cost:
    model, tokenizer = offloaded.model, offloaded.tokenizer
    assert tokenizer is not None
    before = offloaded.report()
    inputs = tokenizer(PROMPT, return_tensors="pt")
    with torch.no_grad():
        model.generate(
            **inputs,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            repetition_penalty=1.0,
        )
    after = offloaded.report()
    misses, stall, moved = (
        float(after[name] or 0) - float(before[name] or 0)
        for name in ("misses", "stall_s", "bytes_transferred")
    )
    return Cost(int(misses), stall, int(moved))


@pytest.mark.bench
@pytest.mark.timeout(600)
def test_looking_one_layer_ahead_stalls_less_where_transfers_take_as_long_as_compute(
    store_4bit: Path,
) -> None:
    link = _balanced_link(store_4bit)
    with _emulated(store_4bit, 0, link) as without, _emulated(store_4bit, 1, link) as ahead:
        for warm in (without, ahead):
            _generate(warm, 16)
        pairs = [(_generate(without, 64), _generate(ahead, 64)) for _ in range(NUM_PAIRS)]
    print(f"\nlink {link / 1e6:.1f} MB/s, {QUARTER} of 192 slots, 64 tokens, {NUM_PAIRS} interleaved pairs")
    print("lookahead  misses (median)  stall, s (median, least, most)")
    for name, arm in (("0", [a for a, _ in pairs]), ("1", [b for _, b in pairs])):
        stalls = [cost.stall_s for cost in arm]
        misses = statistics.median(cost.misses for cost in arm)
        print(
            f"{name:9}  {misses:15.0f}  {statistics.median(stalls):.3f} {min(stalls):.3f} {max(stalls):.3f}"
        )
    saved = statistics.median(a.stall_s - b.stall_s for a, b in pairs)
    print(f"saved by lookahead 1: {saved:.3f} s (median of pairs)")
    assert saved > 0


def _balanced_link(store: Path) -> int:
    """Bytes a second at which what is moved without prefetch takes as long as computing."""
    with _emulated(store, 0, link=10 * 2**30) as offloaded:
        _generate(offloaded, 16)
        started = time.perf_counter()
        cost = _generate(offloaded, 64)
        computing_s = time.perf_counter() - started - cost.stall_s
    return int(cost.bytes_moved / computing_s)
