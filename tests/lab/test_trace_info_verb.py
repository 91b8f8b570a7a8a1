"""`sidestage trace info`: figures, curve and picture of a trace."""

from pathlib import Path

import numpy as np
import pytest
from support.cli import call

from compute.layer_steps import layer_steps
from compute.replay import replay
from compute.trace import Trace
from compute.trace_file import read, write

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Two sequences of 40 tokens, the first 5 of each went through together."""
    rng = np.random.default_rng(3)
    experts = np.argsort(rng.gumbel(size=(80, 3, 16)) + np.linspace(0, 2, 16))[:, :, :2]
    passes = np.concatenate([[0] * 5, range(1, 36), [36] * 5, range(37, 72)]).astype(np.int32)
    phase = np.tile(np.repeat([0, 1], [5, 35]), 2).astype(np.uint8)
    path = tmp_path / "info.npz"
    write(
        path,
        Trace(
            experts.astype(np.int16),
            phase=phase,
            sequence=np.repeat([0, 1], 40).astype(np.int32),
            num_experts=16,
            pass_number=passes,
            meta={"model": "toy"},
        ),
    )
    return path


def test_sizes_and_skew_are_told(capsys: Capture, trace: Path) -> None:
    told = call(capsys, "trace", "info", trace, "--json", "-").json
    sizes = ("model", "layers", "experts", "top_k", "tokens", "prefill_tokens", "decode_tokens", "sequences")
    assert [told[name] for name in sizes] == ["toy", 3, 16, 2, 80, 10, 70, 2]
    assert told["passes"] == 72
    assert len(told["per_layer"]) == 3
    assert 0.25 < told["busiest_quarter"] < 1 and 0 < told["entropy"] < 1 and 0 < told["overlap"] < 1


def test_the_curve_is_lrus_at_every_capacity_the_small_ones_included(capsys: Capture, trace: Path) -> None:
    curve = call(capsys, "trace", "info", trace, "--json", "-").json["lru"]
    steps = layer_steps(read(trace))
    assert curve["slots"][0] == 2 and curve["slots"][-1] == 48
    for slots, rate in zip(curve["slots"], curve["hit_rate"], strict=True):
        assert rate == pytest.approx(replay(steps, "lru", slots).hit_rate)


def test_figures_are_printed_and_a_picture_is_drawn(capsys: Capture, trace: Path, tmp_path: Path) -> None:
    place = tmp_path / "info.png"
    answer = call(capsys, "trace", "info", trace, "--tokens", "50", "--plot", place)
    assert answer.code == 0
    assert "toy, 3 layers of 16 experts, top 2" in answer.out and "50 tokens" in answer.out
    assert "lru hits, by slots" in answer.out
    assert place.read_bytes().startswith(b"\x89PNG")
