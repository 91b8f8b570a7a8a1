"""The bounds' arithmetic, on round numbers."""

import pytest

from launch.bench.bounds import OVERLAPPED, SERIAL, Work, num_moved
from launch.bench.figures import Means, add_bound, failed, figures_of

#: 0.1 s of compute, 4 experts of 1 MB over 40 MB/s: another 0.1 s.
EVEN = Work(compute_s=0.1, moved_experts=4, expert_bytes=10**6, bytes_per_s=40e6)


def segment(tg_s: float, misses: int, used: int, late: int) -> dict[str, object]:
    counted = {"lookups": 100, "hits": 100 - misses - late, "late": late, "misses": misses}
    counted |= {"prefetch_used": used, "stall_s": tg_s / 4, "bytes_read": 10**7, "bytes_transferred": 0}
    seconds = {"pp_s": 0.5, "tg_s": tg_s, "pp_cpu_s": 0.4, "tg_cpu_s": tg_s / 2}
    return {**seconds, "pp": counted, "tg": counted, "peak_rss_bytes": 7}


def test_without_prefetch_transfers_come_after_compute() -> None:
    assert EVEN.bound_s(prefetches=False) == (SERIAL, pytest.approx(0.2))


def test_with_prefetch_the_shorter_of_both_hides() -> None:
    assert EVEN.bound_s(prefetches=True) == (OVERLAPPED, pytest.approx(0.1))


def test_prefetch_gains_nothing_where_the_link_dominates() -> None:
    slow = Work(compute_s=0.001, moved_experts=4, expert_bytes=10**6, bytes_per_s=4e6)
    assert slow.overlapped_s / slow.serial_s > 0.99


def test_a_late_guess_is_moved_once() -> None:
    assert num_moved(misses=3, late=2, prefetch_used=5) == 8


def test_efficiency_is_the_bound_over_what_was_taken() -> None:
    resident = figures_of("resident", {"lookahead": 0}, [segment(0.5, 0, 0, 0)], pp=10, tg=10)
    offload = figures_of("offload", {"lookahead": 0}, [segment(1.0, 20, 0, 0)], pp=10, tg=10)
    add_bound(offload, resident, Means(expert_bytes=10**6, bytes_per_s=100e6, is_link=False), tg=10)
    assert offload["bound"] == SERIAL
    assert offload["bound_tokens_per_second"] == pytest.approx(1 / 0.07)
    assert offload["efficiency"] == pytest.approx(0.7)
    assert offload["utilisation"] == pytest.approx(0.1)
    assert offload["stalled"] == pytest.approx(0.25)


def test_rates_are_means_of_repeats_with_their_deviation() -> None:
    segments = [segment(1.0, 0, 0, 0), segment(2.0, 0, 0, 0)]
    figures = figures_of("offload", {}, segments, pp=10, tg=10)
    assert figures["pp_tokens_per_second"] == 20
    assert figures["tg_tokens_per_second"] == 7.5
    assert figures["tg_deviation"] == pytest.approx(3.5355, rel=1e-4)
    assert figures["lookups"] == 200


def test_an_arm_that_could_not_run_has_every_figure_empty() -> None:
    figures = failed("accelerate", "why")
    assert figures["error"] == "why"
    assert {figures[name] for name in figures if name not in ("arm", "error")} == {None}


def test_the_hosts_share_is_what_no_pass_was_on_the_device_for() -> None:
    counted = {"pp": {}, "tg": {}, "pp_s": 1.0, "pp_cpu_s": 1.0, "tg_cpu_s": 1.0, "peak_rss_bytes": 1}
    segments = [{**counted, "tg_s": 2.0, "tg_device_s": 1.5}, {**counted, "tg_s": 2.0, "tg_device_s": 1.7}]
    assert figures_of("offload", {}, segments, 1, 1)["host_share"] == pytest.approx(0.2)
    segments = [{**counted, "tg_s": 2.0, "tg_device_s": None}]
    assert figures_of("offload", {}, segments, 1, 1)["host_share"] is None
