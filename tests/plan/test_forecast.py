"""The forecast and the curves: pure arithmetic, and shipped figures that make sense."""

import pytest

from launch.planning.curves import POINTS, Curve, most_similar, shipped_curves
from launch.planning.forecast import Band, Speeds, Work, forecast

WORK = Work(num_layers=10, top_k=4, expert_bytes=10**6, worked_bytes=10**8)
SPEEDS = Speeds(
    experts=Band.around(4e9, 2),
    dense=Band.around(10e9, 2),
    link=Band.around(1e9, 2),
    layer_us=Band(100.0, 100.0, 100.0),
    offload_us=Band(0.0, 0.0, 0.0),
    fetch_us=Band(0.0, 0.0, 0.0),
)
ALL = Band(1.0, 1.0, 1.0)


def test_with_every_expert_in_a_slot_a_token_takes_its_compute() -> None:
    told = forecast(WORK, SPEEDS, ALL, 1)
    seconds = 10 * (100e-6 + 4e6 / 4e9 + 10**7 / 10e9)
    assert told.tokens_per_second.likely == pytest.approx(1 / seconds)
    assert told.tokens_per_second == told.resident


def test_without_prefetch_every_miss_is_waited_for() -> None:
    told = forecast(WORK, SPEEDS, Band(0.5, 0.5, 0.5), 0)
    seconds = 1 / forecast(WORK, SPEEDS, ALL, 0).resident.likely + 10 * 4 * 0.5 * 1e6 / 1e9
    assert told.tokens_per_second.likely == pytest.approx(1 / seconds)


def test_prefetch_and_more_hits_make_it_faster() -> None:
    half, most = Band(0.5, 0.5, 0.5), Band(0.9, 0.9, 0.9)
    rates = [
        forecast(WORK, SPEEDS, hit, ahead).tokens_per_second.likely for hit, ahead in ((half, 0), (half, 1))
    ]
    assert rates[0] < rates[1] < forecast(WORK, SPEEDS, most, 1).tokens_per_second.likely


def test_the_band_spans_what_is_not_known() -> None:
    sure = forecast(WORK, SPEEDS, Band(0.5, 0.5, 0.5), 1).tokens_per_second
    unsure = forecast(WORK, SPEEDS, Band(0.3, 0.5, 0.7), 1).tokens_per_second
    assert unsure.low < sure.low < sure.likely < sure.high < unsure.high
    assert unsure.likely == sure.likely


def test_shipped_curves_rise_from_nothing_to_everything() -> None:
    for curve in shipped_curves():
        assert len(curve.capacity) == len(POINTS)
        assert list(curve.warm[4:]) == sorted(curve.warm[4:])
        assert all(cold <= warm for cold, warm in zip(curve.cold, curve.warm))
        assert curve.at(0.0) == (0.0, 0.0)
        assert curve.at(1.0)[1] == 1.0


def test_a_curve_is_interpolated() -> None:
    curve = Curve("c", "olmoe", 1, 4, 1, 9, (0.5, 1.0), (0.4, 0.8), (0.5, 1.0))
    assert curve.at(0.75) == (pytest.approx(0.6), pytest.approx(0.75))
    assert curve.at(0.25) == (pytest.approx(0.2), pytest.approx(0.25))


def test_the_same_type_is_most_similar_then_the_nearest_shape() -> None:
    curves = shipped_curves()
    assert most_similar(curves, "gpt_oss", 32, 4).name == "gptoss_120b_top2"
    assert most_similar(curves, "another", 128, 8).name in ("qwen3_30b_a3b_top6", "gemma4_26b_a4b_top6")
    assert most_similar(curves, "another", 60, 6).name == "deepseek_v2_lite_esft_teacherforced"
