"""The reporter: at most one message a second, whatever the number of layer-steps."""

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from compute import reporter as reporter_module
from compute.reporter import MAX_ABOUT, Reporter
from protocol.messages import Report


@dataclass
class FakeClock:
    now_s: float = 100.0

    def monotonic(self) -> float:
        return self.now_s


@dataclass
class FakeStage:
    keys: set[int] = field(default_factory=lambda: {0, 9})

    def tally(self) -> dict[str, int]:
        return {"hits": 3, "misses": 1}

    def resident_keys(self) -> set[int]:
        return self.keys


@dataclass
class FakeClient:
    told: list[Report] = field(default_factory=list)

    def report(self, report: Report) -> None:
        self.told.append(report)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr(reporter_module, "time", clock)
    return clock


def step(reporter: Reporter, layer: int, num_tokens: int) -> None:
    reporter(layer, num_tokens)


def reporter_of(client: Any, about: str = "direct, lru") -> Reporter:
    stage: Any = FakeStage()
    return Reporter(stage, client, about, 10)


def test_a_second_has_one_report(clock: FakeClock) -> None:
    client = FakeClient()
    reporter = reporter_of(client)
    for number in range(300):
        clock.now_s = 100.0 + number / 100
        step(reporter, number % 3, 1)
    assert len(client.told) == 3


def test_a_report_tells_counters_tokens_and_who_is_in_a_slot(clock: FakeClock) -> None:
    client = FakeClient()
    reporter = reporter_of(client)
    step(reporter, 0, 7)
    clock.now_s += 1
    step(reporter, 1, 7)
    assert dict(zip(client.told[1].names, client.told[1].values)) == {"hits": 3, "misses": 1, "tokens": 7}
    bits = np.unpackbits(np.frombuffer(client.told[1].resident, np.uint8))
    assert np.flatnonzero(bits).tolist() == [0, 9]


def test_long_words_are_cut(clock: FakeClock) -> None:
    client = FakeClient()
    step(reporter_of(client, "x" * 5000), 0, 1)
    assert len(client.told[0].about) == MAX_ABOUT


@pytest.mark.bench
def test_what_the_reporter_costs() -> None:
    client = FakeClient()
    reporter = Reporter(FakeStage(keys=set(range(0, 6144, 3))), client, "direct, lru", 6144)  # type: ignore[arg-type]
    step(reporter, 0, 1)
    rounds = []
    for _ in range(9):
        started = time.thread_time()
        for layer in range(10_000):
            reporter(layer, 1)
        rounds.append((time.thread_time() - started) / 10_000)
    reports = []
    for _ in range(99):
        reporter._due_s = 0.0
        started = time.thread_time()
        step(reporter, 1, 1)
        reports.append(time.thread_time() - started)
    print(
        f"\na layer-step: {statistics.median(rounds) * 1e6:.2f} us, a report of 2048 slots of 6144 experts: "
        f"{statistics.median(reports) * 1e6:.0f} us (medians, time of this thread)"
    )
