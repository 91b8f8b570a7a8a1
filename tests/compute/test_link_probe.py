"""The link's measurement, over a fake device whose speed is known."""

import pytest
from support.fake_driver import FakeDriver

from compute.link_probe import measure_link
from compute.transports.driver import DriverError


def test_speeds_are_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(rate=10e9, tick_ns=1000, reads_pageable=True)
    speeds = measure_link(driver, num_bytes=2**20)
    assert speeds.best == pytest.approx(10e9, rel=0.01)
    assert speeds.by_chunk[2**18] == pytest.approx(10e9, rel=0.05)
    assert set(speeds.by_chunk) == {2**16, 2**17, 2**18, 2**19, 2**20}
    assert speeds.page_locking > 0 and not driver.locked


def test_memory_that_cannot_be_locked_is_an_error_and_leaves_nothing() -> None:
    driver = FakeDriver(most_locked=0, reads_pageable=True)
    with pytest.raises(DriverError, match="page-locks no more"):
        measure_link(driver, num_bytes=2**20)
    assert not driver.locked


def test_a_device_that_stands_still_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compute.link_probe._TIMEOUT_S", 0.05)
    driver = FakeDriver(reads_pageable=True)
    driver.is_poisoned = True
    with pytest.raises(DriverError, match="stands still"):
        measure_link(driver, num_bytes=2**20)
