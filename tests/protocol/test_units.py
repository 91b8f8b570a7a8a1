"""Sizes and rates as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.units import format_size, parse_rate, parse_size


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("4096", 4096),
        (4096, 4096),
        ("900MiB", 900 * 2**20),
        ("1.5GB", 1_500_000_000),
        (" 2 gib ", 2 * 2**30),
        ("7B", 7),
        ("0", 0),
    ],
)
def test_sizes_are_understood(text: str | int, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "MiB", "-1", -1, "1,5GB", "12 parsecs", "1e9", "nan", "0x10", "1GiB/s"])
def test_what_is_no_size_is_refused_with_the_way_to_write_it(text: str | int) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


def test_rates_are_sizes_per_second() -> None:
    assert parse_rate("40MB/s") == 40_000_000
    assert parse_rate("25 GiB / s") == 25 * 2**30


@pytest.mark.parametrize("text", ["40MB", "40MB/h", "/s", "0B/s", "fast/s", "1/s/s"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        parse_rate(text)


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    try:
        assert parse_size(text) >= 0
    except ValueError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**40, "1.0 TiB"), (2**30, "1.0 GiB")],
)
def test_sizes_are_written_in_binary_units(num_bytes: int, text: str) -> None:
    assert format_size(num_bytes) == text
