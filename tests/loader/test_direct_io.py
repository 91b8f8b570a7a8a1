"""Reading past the page cache: when it is chosen, that it brings the same bytes, and what is in its way."""

import errno
import mmap
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from support.cli import run
from support.loader_process import LoaderProcess
from support.synthetic_store import expected_blob, make_store

from loader.direct_io import choose_reading, find_obstacle
from loader.options import ServeOptions
from loader.service import Service
from loader.store_files import StoreFiles
from protocol.arena import ArenaGeometry, create_arena_fd
from protocol.errors import StoreError
from protocol.manifest import Manifest

GIB = 2**30


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return make_store(tmp_path / "store", num_layers=2, num_experts=4, top_k=2, experts_per_shard=3)


def refuse_direct_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file system without them does."""
    open_file: Callable[..., int] = os.open

    def refuse(path: object, flags: int, *more: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return open_file(path, flags, *more)

    monkeypatch.setattr(os, "open", refuse)


def needs_direct_reads(store: Path, manifest: Manifest) -> None:
    if obstacle := find_obstacle(store, manifest):
        pytest.skip(obstacle)


def test_a_store_that_fits_beside_the_arena_goes_through_the_page_cache() -> None:
    reading = choose_reading("auto", store_bytes=GIB, spare_bytes=GIB, obstacle="")
    assert reading.words == "through the page cache (1.0 GiB of memory are left for a store of 1.0 GiB)"


def test_a_store_that_does_not_fit_is_read_straight_from_disk() -> None:
    reading = choose_reading("auto", store_bytes=2 * GIB, spare_bytes=GIB, obstacle="")
    assert reading.words == "straight from disk (1.0 GiB of memory are left, the store has 2.0 GiB)"


def test_who_asks_gets_what_was_asked_for_or_the_reason_why_not() -> None:
    assert choose_reading("on", GIB, 9 * GIB, "").is_direct
    assert not choose_reading("off", 9 * GIB, GIB, "").is_direct
    assert choose_reading("auto", 9 * GIB, GIB, "tmpfs").words == "through the page cache (tmpfs)"
    with pytest.raises(StoreError, match="--direct-io on: tmpfs; pass auto or off"):
        choose_reading("on", 9 * GIB, GIB, "tmpfs")
    with pytest.raises(ValueError, match="--direct-io is 'yes'; allowed: auto, on, off"):
        ServeOptions(Path(), 0, Path(), direct_io="yes")


def test_both_ways_bring_the_same_bytes(tmp_path: Path, manifest: Manifest) -> None:
    needs_direct_reads(tmp_path / "store", manifest)
    frame = np.frombuffer(mmap.mmap(-1, manifest.layout.stride), np.uint8)
    for is_direct in (True, False):
        with closing(StoreFiles(tmp_path / "store", manifest, True, is_direct=is_direct)) as files:
            for key in range(manifest.num_keys):
                frame.fill(0)
                files.read(key, frame)
                assert frame.tobytes() == expected_blob(manifest, key)


def test_a_file_system_without_direct_reads_is_in_the_way(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_direct_reads(monkeypatch)
    assert find_obstacle(tmp_path / "store", manifest) == (
        "its file system has no direct reads (Invalid argument)"
    )


def test_a_loader_reads_directly_into_the_arena_and_says_so(tmp_path: Path, manifest: Manifest) -> None:
    needs_direct_reads(tmp_path / "store", manifest)
    with (
        LoaderProcess(tmp_path / "store", 4, extra=["--direct-io", "on"]) as loader,
        loader.client(quota=4) as client,
    ):
        assert loader.facts["reads"] == "straight from disk (asked for)"
        (ticket,) = client.demand(5)
        client.wait(ticket)
        assert client.blob(ticket) == expected_blob(manifest, 5)
        assert client.stats()["reads_directly"] == 1


def test_a_loader_that_cannot_do_as_it_is_told_does_not_start(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena_fd = create_arena_fd(ArenaGeometry.for_frames(4, manifest.layout.stride))
    options = ServeOptions(tmp_path / "store", arena_fd, tmp_path / "sockets", direct_io="on")
    refuse_direct_reads(monkeypatch)
    try:
        with pytest.raises(StoreError, match=r"no direct reads .* pass auto or off"):
            Service(options)
    finally:
        os.close(arena_fd)


def test_the_command_line_says_how_experts_were_read(store_4bit: Path, tmp_path: Path) -> None:
    answer = run(
        "run", store_4bit, "--direct-io", "off", "--max-new-tokens", "2", "--slots", "40", "--json", "-"
    )
    assert answer.code == 0, answer.err
    assert answer.json["reads"] == "page cache"
    assert "read through the page cache" in answer.err
