"""What a stress run watches: memory in windows, and how long the loader's recoveries take."""

import pytest

from launch.stress.memory import MAX_WINDOWS, MemoryCurve, Sample
from launch.stress.recovery import RecoveryClock


def test_a_window_keeps_the_largest_of_each_process() -> None:
    curve = MemoryCurve()
    curve.note(0.1, Sample(5, 1, 1))
    curve.note(0.9, Sample(1, 7, 2))
    curve.note(1.5, Sample(2, 2, 2))
    assert curve.windows == [Sample(5, 7, 2), Sample(2, 2, 2)]
    assert curve.largest == 7


@pytest.mark.parametrize("seconds", [10, 100, 1800])
def test_a_long_run_fits_into_the_table_and_loses_no_peak(seconds: int) -> None:
    curve = MemoryCurve()
    for second in range(seconds):
        curve.note(second + 0.5, Sample(1, 100 if second == seconds // 3 else 10, 1))
    assert len(curve.windows) <= MAX_WINDOWS
    assert len(curve.windows) * curve.window_s >= seconds
    (peak,) = [n for n, sample in enumerate(curve.windows) if sample.loader_bytes == 100]
    assert peak == int((seconds // 3 + 0.5) / curve.window_s)


def test_a_window_that_was_slept_through_takes_the_next_sample() -> None:
    curve = MemoryCurve()
    curve.note(0.0, Sample(1, 1, 1))
    curve.note(3.0, Sample(2, 2, 2))
    assert [sample.run_bytes for sample in curve.windows] == [1, 2, 2, 2]


def test_a_recovery_ends_with_the_first_expert_of_the_successor() -> None:
    clock = RecoveryClock()
    clock.hit(10.0, num_restarts=0)
    clock.look(10.5, num_restarts=0, transfers=7)  # still on its way from the old loader
    clock.look(11.0, num_restarts=1, transfers=8)
    clock.look(11.5, num_restarts=1, transfers=8)
    assert clock.seconds == []
    clock.look(12.0, num_restarts=1, transfers=9)
    assert clock.seconds == [2.0]


def test_a_second_blow_before_the_recovery_counts_from_the_first() -> None:
    clock = RecoveryClock()
    clock.hit(10.0, num_restarts=0)
    clock.hit(11.0, num_restarts=1)
    clock.look(12.0, num_restarts=2, transfers=0)
    clock.look(13.0, num_restarts=2, transfers=1)
    assert clock.seconds == [3.0]
