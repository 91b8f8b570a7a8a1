"""The cache of converted checkpoints: where a store lies, and when it is made again."""

import json
import os
import shutil
from pathlib import Path

import pytest
from support.tiny_models import make_checkpoint

from compute.cache_folder import Quantization, cache_home, cached_store, find_store
from protocol.errors import ModelError, SidestageError, StoreError
from protocol.manifest import MANIFEST_FILE, Manifest

FOUR_BIT = Quantization()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sidestage"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint("olmoe", tmp_path / "tiny", max_shard_size="200KB")


def touch(path: Path) -> None:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def test_the_cache_is_where_xdg_says(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_home() == cache
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/means/unset")
    assert cache_home() == Path.home() / ".cache" / "sidestage"


def test_the_same_checkpoint_has_the_same_store(checkpoint: Path, cache: Path) -> None:
    store = cached_store(checkpoint, FOUR_BIT)
    assert store == cached_store(str(checkpoint), Quantization(bits="4", group=64))
    assert store.parent == cache / "stores"
    assert store.name.startswith("tiny-4-")


@pytest.mark.parametrize(
    "other",
    [Quantization(bits="8"), Quantization(group=128), Quantization(fast=True), Quantization(bits="none")],
)
def test_another_quantization_has_another_store(other: Quantization, checkpoint: Path) -> None:
    assert cached_store(checkpoint, other) != cached_store(checkpoint, FOUR_BIT)


def test_group_and_fast_mean_nothing_without_quantization(checkpoint: Path) -> None:
    stores = {
        cached_store(checkpoint, Quantization("none", group, fast))
        for group in (None, 32)
        for fast in (False, True)
    }
    assert len(stores) == 1


def test_a_changed_config_has_another_store(checkpoint: Path) -> None:
    before = cached_store(checkpoint, FOUR_BIT)
    path = checkpoint / "config.json"
    stat = path.stat()
    path.write_text(path.read_text().replace('"rope_theta": 1', '"rope_theta": 2'))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cached_store(checkpoint, FOUR_BIT) != before


@pytest.mark.parametrize("pattern", ["*.index.json", "model-00001*", "generation_config.json"])
def test_a_part_written_again_has_another_store(pattern: str, checkpoint: Path) -> None:
    before = cached_store(checkpoint, FOUR_BIT)
    touch(next(checkpoint.glob(pattern)))
    assert cached_store(checkpoint, FOUR_BIT) != before


def test_a_new_readme_changes_nothing(checkpoint: Path) -> None:
    before = cached_store(checkpoint, FOUR_BIT)
    (checkpoint / "README.md").write_text("hello")
    assert cached_store(checkpoint, FOUR_BIT) == before


def test_a_copy_with_its_times_shares_the_store_whatever_its_path(checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "tiny"
    shutil.copytree(checkpoint, copy)
    assert cached_store(copy, FOUR_BIT) == cached_store(checkpoint, FOUR_BIT)


def test_a_checkpoint_is_converted_by_a_child_and_found_again(checkpoint: Path) -> None:
    store = find_store(checkpoint, Quantization(fast=True))
    manifest = Manifest.read(store)
    assert (manifest.layout.bits, manifest.layout.group, manifest.fast) == ("4", 64, True)
    made = (store / MANIFEST_FILE).stat().st_mtime_ns
    assert find_store(checkpoint, Quantization(fast=True)) == store
    assert (store / MANIFEST_FILE).stat().st_mtime_ns == made


def test_a_store_is_itself(store_4bit: Path) -> None:
    assert find_store(store_4bit, FOUR_BIT) == store_4bit.resolve()


def test_a_store_keeps_its_bits(store_4bit: Path) -> None:
    with pytest.raises(
        ValueError, match=r"--bits is 8, but the store .* was converted with 4: leave --bits out"
    ):
        find_store(store_4bit, Quantization(bits="8"))


def test_a_damaged_cached_store_names_the_folder_to_remove(checkpoint: Path) -> None:
    store = cached_store(checkpoint, Quantization("none"))
    store.mkdir(parents=True)
    (store / MANIFEST_FILE).write_text(json.dumps({"schema": 1}))
    with pytest.raises(StoreError, match="it is a cache, so remove"):
        find_store(checkpoint, Quantization("none"))


def test_the_conversions_own_sentence_reaches_the_user(checkpoint: Path) -> None:
    with pytest.raises(SidestageError, match=r"group .*56"):
        find_store(checkpoint, Quantization(group=56))


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a model: it has no config\.json"):
        find_store(tmp_path, FOUR_BIT)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(ModelError, match="is a file, not a model"):
        find_store(file, FOUR_BIT)


@pytest.mark.parametrize("name", ["no-such/model", "no-such-model", "not/a/hub/id", ""])
def test_a_name_that_is_nothing_is_answered_with_a_sentence(name: str) -> None:
    with pytest.raises(ModelError, match=r"there is no|is not a model"):
        find_store(name, FOUR_BIT)


def test_wrong_bits_and_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="--bits is '5'; allowed: 8, 4, 3, 2, none"):
        Quantization(bits="5")
    with pytest.raises(ValueError, match="--group is 0"):
        Quantization(group=0)
