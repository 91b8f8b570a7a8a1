"""Many replays at once: the same figures as one by one, on the scale from lru to belady."""

from pathlib import Path

import numpy as np
import pytest

from compute.comparison import Cell, cells_of, compare, gap_closed
from compute.replay import Scope
from compute.trace import Trace
from compute.trace_file import write


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    experts = np.argsort(rng.gumbel(size=(200, 3, 8)) + np.linspace(0, 2, 8))[:, :, :2]
    path = tmp_path / "small.npz"
    write(path, Trace(experts.astype(np.int16), np.zeros(200, np.uint8), np.zeros(200, np.int32), 8))
    return path


def test_the_gap_is_measured_from_lru_to_belady() -> None:
    assert gap_closed(0.6, lru=0.5, belady=0.7) == pytest.approx(0.5)
    assert gap_closed(0.4, lru=0.5, belady=0.7) == pytest.approx(-0.5)
    assert gap_closed(0.5, lru=0.5, belady=0.5009) is None


def test_the_ends_of_the_scale_are_replayed_unasked(trace: Path) -> None:
    (result,) = compare([Cell(trace, "lfu", 0.5)])
    ends = compare([Cell(trace, name, 0.5) for name in ("lru", "belady")])
    lru, belady = (end.outcome.hit_rate for end in ends)
    assert result.gap_closed == pytest.approx((result.outcome.hit_rate - lru) / (belady - lru))
    assert [end.gap_closed for end in ends] == [0.0, 1.0]


def test_results_keep_the_order_of_the_cells_and_say_how_far_they_are(trace: Path) -> None:
    cells = cells_of([trace], ["sieve", "lru"], [0.5, 0.25], Scope.LAYER, num_tokens=100)
    seen: list[tuple[int, int]] = []
    results = compare(cells, progress=lambda done, of: seen.append((done, of)))
    assert [result.cell for result in results] == cells
    assert seen == [(done, 6) for done in range(1, 7)]
    assert [result.slots for result in results] == [12, 12, 6, 6]


def test_a_result_is_plain_json(trace: Path) -> None:
    (result,) = compare([Cell(trace, "lru", 1.0)])
    told = result.as_json()
    assert told["gap_closed"] is None and told["scope"] == "global" and told["slots"] == 24
    assert told["lookups"] == 1200 and told["hits"] == 1200 - 24


def test_several_processes_count_the_same(trace: Path) -> None:
    cells = cells_of([trace], ["lru", "reuse-distance", "belady-bypass"], [0.25], Scope.GLOBAL)
    one, two = (compare(cells, num_processes=n) for n in (1, 2))
    assert [r.outcome.misses for r in one] == [r.outcome.misses for r in two]


def test_a_wrong_cell_is_refused_with_its_sentence(trace: Path) -> None:
    with pytest.raises(ValueError, match='no policy is called "lruu"'):
        compare([Cell(trace, "lruu", 0.5)])
    with pytest.raises(ValueError, match="no policy is called"):
        compare([Cell(trace, "lruu", 0.5)], num_processes=2)
