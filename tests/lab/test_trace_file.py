"""A trace survives its file, and a bad file is refused with one sentence."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from compute.trace import Trace
from compute.trace_file import read, write

SHARED = Path(__file__).parents[2].parent / "shared" / "traces"


def small_arrays() -> dict[str, np.ndarray]:
    """Three tokens, two layers, two of four experts."""
    experts = np.array([[[0, 1], [2, 3]], [[1, 2], [0, 3]], [[3, 0], [-1, -1]]], dtype=np.int16)
    return {
        "experts": experts,
        "scores": np.where(experts < 0, 0.0, 0.5).astype(np.float16),
        "phase": np.array([0, 0, 1], dtype=np.uint8),
        "sequence": np.zeros(3, dtype=np.int32),
        "pass": np.array([0, 0, 1], dtype=np.int32),
        "meta": np.array(json.dumps({"model": "small", "n_layers": 2, "n_experts": 4, "top_k": 2})),
    }


def told_of(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        read(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text
    return text


def told(folder: Path, **changes: np.ndarray | None) -> str:
    """What `read` says of the small trace after some changes; None takes an array away."""
    arrays = {name: array for name, array in {**small_arrays(), **changes}.items() if array is not None}
    path = folder / "bad.npz"
    np.savez_compressed(path, allow_pickle=True, **arrays)
    return told_of(path)


def test_a_trace_survives_its_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **small_arrays())
    first = read(tmp_path / "a.npz")
    write(tmp_path / "b.npz", first)
    second = read(tmp_path / "b.npz")
    for name in ("experts", "scores", "phase", "sequence", "pass_number"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
    assert second.probs is None and second.token_id is None
    assert (second.num_experts, second.meta) == (4, first.meta)


def test_probabilities_and_tokens_survive_too(tmp_path: Path) -> None:
    arrays = small_arrays()
    trace = Trace(
        arrays["experts"],
        arrays["phase"],
        arrays["sequence"],
        num_experts=4,
        probs=np.full((3, 2, 4), 0.25, dtype=np.float16),
        token_id=np.array([7, 8, 9], dtype=np.int32),
    )
    write(tmp_path / "t.npz", trace)
    again = read(tmp_path / "t.npz")
    assert again.probs is not None and again.probs.shape == (3, 2, 4)
    assert again.token_id is not None and again.token_id.tolist() == [7, 8, 9]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write(
        tmp_path / "t.npz",
        Trace(np.zeros((1, 1, 1), np.int16), np.zeros(1, np.uint8), np.zeros(1, np.int32), 2),
    )
    assert [path.name for path in tmp_path.iterdir()] == ["t.npz"]


def test_what_the_format_leaves_out_is_zero(tmp_path: Path) -> None:
    arrays = small_arrays()
    np.savez(tmp_path / "t.npz", experts=arrays["experts"].astype(np.int64), meta=arrays["meta"])
    trace = read(tmp_path / "t.npz")
    assert not trace.phase.any() and not trace.sequence.any() and trace.pass_number is None


@pytest.mark.parametrize("path", sorted(SHARED.glob("*.npz")), ids=lambda path: path.stem[:12])
def test_real_traces_are_read(path: Path) -> None:
    assert read(path).num_tokens > 100


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "no such file" in told_of(tmp_path / "nowhere.npz")


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.npz").write_text("experts: many\n")
    assert "no .npz file" in told_of(tmp_path / "t.npz")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, **small_arrays())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "cannot be used" in told_of(path) or "damaged" in told_of(path)


def test_a_damaged_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, **small_arrays())
    data = bytearray(path.read_bytes())
    data[data.index(b"\x01\x00\x02\x00\x03\x00")] ^= 255
    path.write_bytes(data)
    assert "damaged" in told_of(path)


def test_pickles_are_refused_unopened(tmp_path: Path) -> None:
    assert "pickled" in told(tmp_path, experts=np.array([[["a", 3]]], dtype=object))
    assert "pickled" in told(tmp_path, extra=np.array([{"a": 3}], dtype=object))


def test_an_array_that_claims_more_than_it_holds_is_refused_unallocated(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    header = io.BytesIO()
    shape = {"descr": "<i2", "fortran_order": False, "shape": (1 << 40, 26, 6)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("experts.npy", header.getvalue() + b"\0" * 64)
    assert "truncated" in told_of(path)


def test_a_file_larger_than_asked_for_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", **small_arrays())
    with pytest.raises(ValueError, match="larger than is read"):
        read(tmp_path / "t.npz", max_bytes=16)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"experts": None}, 'no array "experts"'),
        ({"experts": np.zeros((3, 4), np.int16)}, "[tokens, layers, k]"),
        ({"experts": np.zeros((0, 2, 2), np.int16)}, "[tokens, layers, k]"),
        ({"experts": np.zeros((3, 2, 2), np.float32)}, "float32"),
        ({"experts": np.full((3, 2, 2), 4, np.int16)}, "0 to 3"),
        ({"experts": np.full((3, 2, 2), -2, np.int16)}, "from -2"),
        ({"experts": np.full((3, 2, 2), -1, np.int16)}, "nothing was computed"),
        ({"experts": np.full((3, 2, 2), 1 << 40)}, "beyond int16"),
        ({"scores": np.zeros((3, 2), np.float16)}, "(3, 2)"),
        ({"scores": np.full((3, 2, 2), np.nan, np.float16)}, "finite"),
        ({"probs": np.zeros((3, 2, 5), np.float16)}, "(3, 2, 5)"),
        ({"phase": np.full(3, 2, np.uint8)}, "prefill"),
        ({"phase": np.zeros(2, np.uint8)}, "(2,)"),
        ({"sequence": np.zeros(4, np.int32)}, "(4,)"),
        ({"pass": np.array([0, 1, 0], np.int32)}, "comes back"),
        ({"meta": None}, "n_experts"),
        ({"meta": np.array("{")}, "no JSON"),
        ({"meta": np.array("[1]")}, "no JSON object"),
        ({"meta": np.array('{"n_experts": "many"}')}, "n_experts"),
        ({"meta": np.array('{"n_experts": 1}')}, "2 of 1 experts"),
        ({"meta": np.array('{"n_experts": 4, "n_layers": 7}')}, "n_layers = 7"),
        ({"meta": np.array(3)}, "int64"),
    ],
)
def test_wrong_contents_are_refused(
    tmp_path: Path, changes: dict[str, np.ndarray | None], expected: str
) -> None:
    assert expected in told(tmp_path, **changes)
