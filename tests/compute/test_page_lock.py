"""Page-locking an arena's frames: ranges, limits, halves, and what is rolled back."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fake_driver import FakeDriver
from support.pinned_play import BLOB_BYTES, NUM_KEYS, filled_arena

from compute import cuda_presence
from compute.ledger import Completion
from compute.transports import page_lock
from compute.transports.driver import DriverError
from compute.transports.locked_ring import LockedRing
from compute.transports.page_lock import PageLock, lock_frames, ranges_of
from protocol.arena import Arena

CHUNK_BYTES = 4096
RING_BYTES = 2 * CHUNK_BYTES


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with filled_arena() as arena:
        yield arena


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_lock, "MOST_RANGE_BYTES", 5 * BLOB_BYTES + 100)
    monkeypatch.setattr(page_lock, "LEAST_BYTES", 1)


def test_ranges_cover_every_frame_once_and_are_cut_between_frames() -> None:
    assert list(ranges_of(12, BLOB_BYTES)) == [(0, 5), (5, 5), (10, 2)]
    assert list(ranges_of(2, 10 * BLOB_BYTES)) == [(0, 1), (1, 1)], "a frame is never cut"


def test_every_frame_is_locked_where_it_lies_and_unlocked_at_the_end(arena: Arena) -> None:
    driver = FakeDriver()
    lock, ring = lock_frames(driver, arena, None, CHUNK_BYTES)
    assert lock.is_whole and ring is None and driver.num_locked == NUM_KEYS * BLOB_BYTES
    assert lock.address_of(Completion(0, 7, 0, arena)) == arena.frames[7].ctypes.data
    lock.close()
    lock.close()
    assert not driver.locked


def test_a_range_that_is_refused_rolls_all_of_them_back(arena: Arena) -> None:
    driver = FakeDriver(most_locked=11 * BLOB_BYTES)
    with pytest.raises(DriverError):
        PageLock(driver, arena, NUM_KEYS)
    assert not driver.locked


@pytest.mark.parametrize(("most_frames", "num_locked"), [(10, 6), (5, 3), (1, 1), (0, 0)])
def test_what_is_not_granted_whole_is_tried_by_halves_after_the_ring(
    arena: Arena, most_frames: int, num_locked: int
) -> None:
    driver = FakeDriver(most_locked=most_frames * BLOB_BYTES + RING_BYTES)
    lock, ring = lock_frames(driver, arena, None, CHUNK_BYTES)
    assert lock.num_frames == num_locked and ring is not None and "locks no more" in lock.reason
    assert (lock.address_of(Completion(0, num_locked, 0, arena)) is None) is (num_locked < NUM_KEYS)
    lock.close()
    ring.close()
    assert not driver.locked


def test_a_known_limit_is_not_tried_beyond(arena: Arena) -> None:
    driver = FakeDriver()
    lock, ring = lock_frames(driver, arena, 4 * BLOB_BYTES, CHUNK_BYTES)
    assert lock.num_frames == 4 and ring is not None and "the system's limit is 32.0 KiB" in lock.reason


def test_not_even_a_ring_is_an_error(arena: Arena) -> None:
    driver = FakeDriver(most_locked=100)
    with pytest.raises(DriverError, match="page-locks no more"):
        lock_frames(driver, arena, None, CHUNK_BYTES)
    assert not driver.locked


def test_a_frame_of_another_arena_is_not_locked(arena: Arena) -> None:
    lock = PageLock(FakeDriver(), arena, NUM_KEYS)
    with filled_arena() as other:
        assert lock.address_of(Completion(0, 0, 0, other)) is None


def test_a_ring_hands_out_its_cells_in_turn(arena: Arena) -> None:
    ring = LockedRing(FakeDriver(), 2, 4096)
    addresses = [ring.put(arena.frames[key][:4096]) for key in range(3)]
    assert addresses[0] == addresses[2] == addresses[1] - 4096
    ring.close()


@pytest.mark.parametrize(
    ("line", "is_for_cuda"), [("cuda: Optional[str] = None", False), ("cuda: Optional[str] = '13.0'", True)]
)
def test_a_torch_that_was_built_for_cuda_is_known_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, is_for_cuda: bool
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "torch" / "version.py").write_text(f"from typing import Optional\n{line}\nhip = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "torch", raising=False)
    assert cuda_presence.torch_is_for_cuda() is is_for_cuda


def test_a_hidden_device_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_presence, "_NODES", (Path("/dev/null"),))
    monkeypatch.setattr(cuda_presence, "torch_is_for_cuda", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cuda_presence.has_cuda()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not cuda_presence.has_cuda()
