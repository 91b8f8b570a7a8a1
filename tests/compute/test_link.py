"""The link's clock, and the alarm that wakes its thread."""

import select
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compute.transports.alarm import Alarm
from compute.transports.link import CATCH_UP_NS, LinkClock, chunk_bytes_for

MS = 1_000_000


def test_chunks_follow_each_other_without_a_gap() -> None:
    link = LinkClock(rate=1_000_000)
    assert link.book(0, 0, 0, 1000) == (0, MS)
    assert link.book(0, 0, 0, 500) == (MS, MS + MS // 2)
    assert link.busy_ns == MS + MS // 2


def test_an_idle_link_starts_when_the_bytes_are_ready() -> None:
    link = LinkClock(rate=1_000_000)
    assert link.book(7 * MS, 7 * MS, 7 * MS, 1000) == (7 * MS, 8 * MS)


def test_a_feeder_that_comes_late_costs_no_bandwidth() -> None:
    link = LinkClock(rate=1_000_000)
    link.book(0, 0, 0, 1000)
    assert link.book(0, 3 * MS, 3 * MS, 1000) == (MS, 2 * MS)
    assert link.book(0, 3 * MS, 3 * MS, 1000) == (2 * MS, 3 * MS)
    assert link.book(0, 3 * MS, 3 * MS, 1000) == (3 * MS, 4 * MS)


def test_lateness_beyond_the_limit_is_lost() -> None:
    link = LinkClock(rate=1_000_000)
    late_ns = 5 * CATCH_UP_NS
    assert link.book(0, late_ns, late_ns, 1000)[0] == late_ns - CATCH_UP_NS


def test_without_a_rate_a_chunk_takes_as_long_as_its_copy() -> None:
    link = LinkClock(rate=None)
    assert link.book(0, 3 * MS, 4 * MS, 10**9) == (3 * MS, 4 * MS)
    assert link.busy_ns == MS


@pytest.mark.parametrize("rate", [0, -1])
def test_a_rate_of_nothing_is_refused(rate: int) -> None:
    with pytest.raises(ValueError, match="above 0"):
        LinkClock(rate)


@given(st.lists(st.tuples(st.integers(0, 20 * MS), st.integers(1, 10**6)), min_size=1))
def test_the_rate_is_never_exceeded(steps: list[tuple[int, int]]) -> None:
    """Over any stretch no more crosses than the rate and one catch-up allow."""
    link = LinkClock(rate=100_000_000)
    now, total, free_at_ns = CATCH_UP_NS, 0, 0
    first_ns = None
    for pause_ns, num_bytes in steps:
        now += pause_ns
        start_ns, end_ns = link.book(0, now, now, num_bytes)
        first_ns = start_ns if first_ns is None else first_ns
        total += num_bytes
        assert start_ns >= max(free_at_ns, now - CATCH_UP_NS)
        assert total * 10 <= end_ns - first_ns
        free_at_ns = end_ns


def test_a_chunk_is_short_on_a_slow_link_and_at_most_2_mib() -> None:
    assert chunk_bytes_for(20_000_000) == 64 * 2**10
    assert chunk_bytes_for(25_000_000_000) == chunk_bytes_for(None) == 2 * 2**20
    assert chunk_bytes_for(500_000_000) % 4096 == 0


def test_the_alarm_rings_at_its_time_and_can_be_called_off() -> None:
    alarm = Alarm()
    try:
        at_ns = time.monotonic_ns() + 20 * MS
        alarm.set(at_ns)
        assert select.select([alarm.fd], [], [], 2)[0]
        assert time.monotonic_ns() >= at_ns
        alarm.set(None)
        assert not select.select([alarm.fd], [], [], 0.05)[0]
        alarm.set(1)
        assert select.select([alarm.fd], [], [], 2)[0]
    finally:
        alarm.close()
        alarm.close()
