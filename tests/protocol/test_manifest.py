"""The manifest: whole or refused, and never a path out of its store."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.synthetic_store import make_store

from protocol.errors import StoreError
from protocol.manifest import MANIFEST_FILE, Manifest, Shard


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make_store(tmp_path / "store", num_layers=2, num_experts=3, top_k=2, stride_kib=4)
    return tmp_path / "store"


def rewrite(store: Path, **changes: Any) -> None:
    """Change entries and mend the fingerprint, as a forger would."""
    path = store / MANIFEST_FILE
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(data))


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    manifest = make_store(tmp_path, num_layers=2, num_experts=3, top_k=1, stride_kib=4, experts_per_shard=2)
    assert Manifest.read(tmp_path) == manifest
    manifest.check_shards(tmp_path)


def test_sizes_follow_from_the_layers(store: Path) -> None:
    manifest = Manifest.read(store)
    assert (manifest.num_layers, manifest.num_keys, manifest.expert_bytes_total) == (2, 6, 6 * 4096)


def test_a_folder_without_a_manifest_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a store"):
        Manifest.read(tmp_path)


def test_a_changed_entry_is_noticed(store: Path) -> None:
    rewrite(store, source="elsewhere")
    with pytest.raises(StoreError, match="fingerprint"):
        Manifest.read(store)


def test_another_schema_is_refused(store: Path) -> None:
    rewrite(store, schema=99)
    with pytest.raises(StoreError, match="schema 99"):
        Manifest.read(store)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", '{"schema": 1}', "\0\0", "[" * 100_000, '{"schema": NaN}']
)
def test_a_file_that_is_no_manifest_is_refused(store: Path, text: str) -> None:
    (store / MANIFEST_FILE).write_text(text)
    with pytest.raises(StoreError):
        Manifest.read(store)


def test_a_truncated_shard_is_refused(store: Path) -> None:
    manifest = Manifest.read(store)
    shard = store / manifest.shards[0].file
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(StoreError, match="truncated or foreign"):
        manifest.check_shards(store)


def test_a_missing_shard_is_refused(store: Path) -> None:
    manifest = Manifest.read(store)
    (store / manifest.shards[1].file).unlink()
    with pytest.raises(StoreError, match="missing"):
        manifest.check_shards(store)


@pytest.mark.parametrize("file", ["../evil.safetensors", "/etc/passwd", "a/b.safetensors", "..", "x.bin", ""])
def test_no_shard_lies_outside_its_store(store: Path, file: str) -> None:
    manifest = Manifest.read(store)
    shards = (Shard(file, 0, 3, 4096), *manifest.shards[1:])
    with pytest.raises(StoreError, match="file name"):
        dataclasses.replace(manifest, shards=shards)


@pytest.mark.parametrize(
    "change",
    [
        {"checksums": (1,)},
        {"layers": ()},
        {"num_experts": 0},
        {"top_k": 4},
        {"top_k": 0},
        {"shards": ()},
        {"shards": (Shard("a.safetensors", 0, 3, 4096),)},
        {"shards": (Shard("a.safetensors", 0, 6, 100),)},
        {"shards": (Shard("a.safetensors", 1, 6, 4096),)},
        {"shards": (Shard("a.safetensors", 0, 7, 4096),)},
    ],
)
def test_contradictions_are_refused(store: Path, change: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match="damaged manifest"):
        dataclasses.replace(Manifest.read(store), **change)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(entry=st.sampled_from([field.name for field in dataclasses.fields(Manifest)]), value=JSON)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
def test_any_entry_may_be_anything_and_the_store_is_still_only_refused(
    store: Path, entry: str, value: object
) -> None:
    before = (store / MANIFEST_FILE).read_text()
    try:
        rewrite(store, **{entry: value})
        Manifest.read(store)
    except StoreError as error:
        assert str(error)
    finally:
        (store / MANIFEST_FILE).write_text(before)
