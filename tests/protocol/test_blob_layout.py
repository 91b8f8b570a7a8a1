"""BlobLayout: aligned, disjoint, and the same after a trip through JSON."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.blob import DTYPE_BYTES, BlobLayout, Segment

PARTS = st.lists(
    st.tuples(
        st.text("abc._", min_size=1, max_size=8),
        st.sampled_from(sorted(DTYPE_BYTES)),
        st.lists(st.integers(1, 300), min_size=1, max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=6,
)


@given(PARTS)
def test_segments_are_aligned_and_do_not_overlap(parts: list[tuple[str, str, tuple[int, ...]]]) -> None:
    layout = BlobLayout.pack("4", 64, parts)
    end = 0
    for segment in layout.segments:
        assert segment.offset >= end and segment.offset % 128 == 0
        end = segment.offset + segment.num_bytes
    assert end <= layout.stride and layout.stride % 4096 == 0


@given(PARTS)
def test_json_keeps_a_layout_and_its_fingerprint(parts: list[tuple[str, str, tuple[int, ...]]]) -> None:
    layout = BlobLayout.pack("4", 64, parts)
    again = BlobLayout.from_json(json.loads(json.dumps(layout.to_json())))
    assert again == layout
    assert again.fingerprint == layout.fingerprint


def test_another_shape_has_another_fingerprint() -> None:
    one = BlobLayout.pack("none", 0, [("down_proj", "float32", (4, 8))])
    other = BlobLayout.pack("none", 0, [("down_proj", "float32", (8, 4))])
    assert one.stride == other.stride
    assert one.fingerprint != other.fingerprint


def test_segments_are_found_by_name() -> None:
    layout = BlobLayout.pack("none", 0, [("a", "uint8", (3,)), ("b", "float16", (5,))])
    assert layout.segment("b") == Segment("b", "float16", (5,), 128)
    with pytest.raises(KeyError):
        layout.segment("c")


@pytest.mark.parametrize(
    ("segments", "stride", "said"),
    [
        ((Segment("a", "uint8", (1,), 0),), 100, "multiple of 4096"),
        ((Segment("a", "int4", (1,), 0),), 4096, "dtype 'int4'"),
        ((Segment("a", "uint8", (0,), 0),), 4096, "shape"),
        ((Segment("a", "uint8", (-4,), 0),), 4096, "shape"),
        ((Segment("a", "uint8", (5000,), 0),), 4096, "beyond the stride"),
        ((Segment("a", "uint8", (300,), 0), Segment("b", "uint8", (1,), 128)), 4096, "overlaps"),
        ((Segment("a", "uint8", (1,), 7),), 4096, "not aligned"),
    ],
)
def test_impossible_layouts_are_refused(segments: tuple[Segment, ...], stride: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        BlobLayout("4", 64, segments, stride)


@pytest.mark.parametrize(
    "data",
    [{}, {"segments": 3}, {"segments": [{}]}, {"bits": "4", "group": "x", "segments": [], "stride": 4096}],
)
def test_json_that_is_no_layout_is_a_value_error(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        BlobLayout.from_json(data)
