"""The formulas of the bounds, with numbers that a head can check."""

import pytest

from compute.timing_model import Link, Moved, timing

#: An expert takes 2 us, a layer computes 3 us.
LINK = Link(rate=1e6, blob_bytes=2, layer_us=3)


def test_without_prefetch_the_model_is_the_serial_bound() -> None:
    times = timing(Moved(num_tokens=10, num_steps=40, demanded=50), LINK)
    assert times.total_s == times.serial_s == pytest.approx(40 * 3e-6 + 50 * 2e-6)
    assert times.stall_s == pytest.approx(50 * 2e-6)
    assert times.bound_s == pytest.approx(40 * 3e-6)
    assert times.tokens_per_second == pytest.approx(10 / 220e-6)
    assert times.bound_tokens_per_second == pytest.approx(10 / 120e-6)


def test_a_link_that_is_always_busy_bounds_the_rate() -> None:
    times = timing(Moved(num_tokens=1, num_steps=10, demanded=90), LINK)
    assert times.bound_s == pytest.approx(90 * 2e-6)


def test_what_is_prefetched_flows_while_layers_compute() -> None:
    times = timing(Moved(num_tokens=1, num_steps=10, demanded=2, used=5, wasted=5), LINK)
    assert times.total_s == pytest.approx(2 * 2e-6 + 10 * 3e-6)
    assert times.stall_s == pytest.approx(2 * 2e-6)
    assert times.serial_s == pytest.approx(10 * 3e-6 + 7 * 2e-6)


def test_wasted_guesses_cost_once_the_link_is_full() -> None:
    frugal, lavish = (timing(Moved(1, 10, demanded=0, used=15, wasted=wasted), LINK) for wasted in (0, 5))
    assert frugal.total_s == frugal.bound_s == pytest.approx(30e-6)
    assert lavish.total_s == pytest.approx(40e-6)
    assert lavish.bound_s == frugal.bound_s


def test_nothing_that_takes_no_time_has_a_rate() -> None:
    assert timing(Moved(1, 10, demanded=0), Link(1e6, 2, 0)).tokens_per_second is None


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"blob_bytes": 0}, {"layer_us": -1}])
def test_an_impossible_link_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Link(**{"rate": 1.0, "blob_bytes": 1.0, "layer_us": 1.0, **wrong})
