"""A conversion writes a self-contained store, and never overwrites what it should not."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.stores import contents, read_blobs
from support.tiny_models import make_checkpoint

from loader.anatomy import study
from loader.checkpoint import Checkpoint
from loader.convert import convert
from loader.quantize import write_blob
from loader.source import find_source
from loader.store import StorePlace
from loader.store_writer import StoreWriter
from protocol.errors import ModelError, StoreError
from protocol.manifest import Manifest


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OLMoE of two layers and eight experts, with the files that come along."""
    folder = make_checkpoint("olmoe", tmp_path_factory.mktemp("olmoe") / "tiny-olmoe")
    for name in ("tokenizer.json", "chat_template.jinja", "LICENSE", "pytorch_model.bin", "README.md"):
        (folder / name).write_text(f"the {name}")
    return folder


@pytest.mark.parametrize("bits", ["8", "4", "3", "2", "none"])
def test_blobs_of_a_store_are_the_checkpoints_experts(bits: str, checkpoint: Path, tmp_path: Path) -> None:
    store = convert(checkpoint, tmp_path / "store", bits=bits, fast=True)
    manifest, blobs = Manifest.read(store), read_blobs(store)
    expected = np.empty(manifest.layout.stride, np.uint8)
    with Checkpoint.open(checkpoint) as opened:
        assert len(blobs) == opened.num_keys == 16
        for key, blob in enumerate(blobs):
            write_blob(expected, opened.expert(key), manifest.layout, is_transposed=False, fast=True)
            assert np.array_equal(blob, expected)


def test_manifest_says_what_the_store_is(checkpoint: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(convert(checkpoint, tmp_path / "store", bits="4", group=32))
    assert (manifest.model_type, manifest.architecture) == ("olmoe", "OlmoeForCausalLM")
    assert (manifest.layout.bits, manifest.layout.group, manifest.fast) == ("4", 32, False)
    assert (manifest.num_experts, manifest.top_k, manifest.num_layers) == (8, 3, 2)
    assert (manifest.dtype, manifest.quantized_on) == ("float32", "cpu")
    assert manifest.source == f"tiny-olmoe@{find_source(checkpoint).identity}"


def test_checksums_are_those_of_the_padded_blobs(checkpoint: Path, tmp_path: Path) -> None:
    store = convert(checkpoint, tmp_path / "store", bits="3", fast=True)
    checksums = [xxhash.xxh3_64_intdigest(blob.tobytes()) for blob in read_blobs(store)]
    assert list(Manifest.read(store).checksums) == checksums


def test_settings_of_quantization_mean_nothing_without_it(checkpoint: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(convert(checkpoint, tmp_path / "store", bits="none", group=7, fast=True))
    assert (manifest.layout.group, manifest.fast, manifest.quantized_on) == (0, False, "")


def test_safetensors_reads_the_shards(checkpoint: Path, tmp_path: Path) -> None:
    store = convert(checkpoint, tmp_path / "store", bits="none")
    manifest, blobs = Manifest.read(store), read_blobs(store)
    with safe_open(store / manifest.shards[0].file, framework="pt") as shard:
        assert len(shard.keys()) == 16
        blob = shard.get_tensor("layers.1.experts.3")
    assert blob.dtype == torch.uint8 and np.array_equal(blob.numpy(), blobs[11])


def test_every_weights_file_of_a_store_has_its_data_on_a_page(checkpoint: Path, tmp_path: Path) -> None:
    store = convert(checkpoint, tmp_path / "store", bits="none")
    for path in store.glob("*.safetensors"):
        header_bytes = int.from_bytes(path.read_bytes()[:8], "little")
        assert (8 + header_bytes) % 4096 == 0


def test_dense_weights_are_copied_verbatim(checkpoint: Path, tmp_path: Path) -> None:
    store = convert(checkpoint, tmp_path / "store", bits="2", fast=True)
    with (
        safe_open(checkpoint / "model.safetensors", framework="pt") as theirs,
        safe_open(store / "model.safetensors", framework="pt") as ours,
    ):
        names = ours.keys()
        assert set(names) == {name for name in set(theirs.keys()) if ".experts." not in name}
        for name in names:
            assert torch.equal(ours.get_tensor(name), theirs.get_tensor(name))
        assert ours.metadata() == {"format": "pt"}


def test_companions_come_along_and_nothing_else(checkpoint: Path, tmp_path: Path) -> None:
    store = convert(checkpoint, tmp_path / "store", bits="none")
    companions = ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "LICENSE")
    written = contents(store)
    for name in companions:
        assert written[name] == (checkpoint / name).read_bytes()
    weights = {"manifest.json", "model.safetensors", "experts-00001-of-00001.safetensors"}
    assert set(written) == {*companions, *weights}


def test_nothing_stays_beside_the_store(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "store", bits="none")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_progress_counts_experts(checkpoint: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    convert(
        checkpoint, tmp_path / "store", bits="none", progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(done, 16) for done in range(17)]


def test_many_shards_hold_what_one_does(checkpoint: Path, tmp_path: Path) -> None:
    store = convert(checkpoint, tmp_path / "store", bits="none")
    manifest, blobs = Manifest.read(store), read_blobs(store)
    folder = tmp_path / "shards"
    folder.mkdir()
    stride = manifest.layout.stride
    with StoreWriter(folder, manifest.layout, 2, 8, {}, shard_bytes=3 * stride + 1) as writer:
        for blob in blobs:
            writer.write_expert(blob)
        assert [shard.num_experts for shard in writer.shards] == [3, 3, 3, 3, 3, 1]
        for shard in writer.shards:
            data = np.fromfile(folder / shard.file, np.uint8, offset=shard.data_offset)
            expected = blobs[shard.first_key : shard.first_key + shard.num_experts]
            assert np.array_equal(data, np.concatenate(expected))


def test_weights_that_the_model_never_loads_are_left_out(tmp_path: Path) -> None:
    folder = make_checkpoint("deepseek_v3", tmp_path / "model")
    with Checkpoint.open(folder) as plain:
        before = {entry.name for entry in plain.dense}
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.61.mlp.experts.0.up_proj.weight"] = torch.zeros(4)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with Checkpoint.open(folder) as opened:
        assert {entry.name for entry in opened.dense} == before


# --- what stands there already -------------------------------------------------------------------


def test_whole_store_of_the_same_parameters_is_left_as_it_is(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = convert(checkpoint, tmp_path / "store", bits="none")
    before = {path.name: path.stat().st_mtime_ns for path in store.iterdir()}
    with caplog.at_level("INFO", logger="sidestage"):
        assert convert(checkpoint, store, bits="none") == store
    assert before == {path.name: path.stat().st_mtime_ns for path in store.iterdir()}
    assert "nothing to do" in caplog.text


@pytest.mark.parametrize(
    "asked,sentence",
    [
        ({"bits": "8"}, r"4 bits \(asked: 8\)"),
        ({"group": 32}, r"group 64 \(asked: 32\)"),
        ({"fast": False}, r"plain rounding \(asked: optimised\)"),
    ],
)
def test_store_of_other_parameters_is_not_overwritten(
    asked: dict[str, Any], sentence: str, checkpoint: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"bits": "4", "group": 64, "fast": True}
    store = convert(checkpoint, tmp_path / "store", **settings)
    with pytest.raises(ValueError, match=sentence):
        convert(checkpoint, store, **{**settings, **asked})


def test_store_of_a_changed_checkpoint_is_not_taken_for_it(checkpoint: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    store = convert(model, tmp_path / "store", bits="none")
    (model / "model.safetensors").touch()
    with pytest.raises(ValueError, match="a store of the checkpoint model@"):
        convert(model, store, bits="none")


def test_folder_that_is_no_store_is_not_overwritten(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.txt").write_text("ten years of work")
    with pytest.raises(StoreError, match="is not a store: name another folder, or remove it"):
        convert(checkpoint, tmp_path / "store", bits="none")
    assert (tmp_path / "store" / "thesis.txt").read_text() == "ten years of work"


def test_empty_folder_becomes_the_store(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    assert Manifest.read(convert(checkpoint, tmp_path / "store", bits="none")).num_keys == 16


def test_truncated_store_is_said_to_be_one(checkpoint: Path, tmp_path: Path) -> None:
    store = convert(checkpoint, tmp_path / "store", bits="none")
    shard = next(store.glob("experts-*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(StoreError, match="truncated or foreign"):
        convert(checkpoint, store, bits="none")


def test_store_as_the_model_keeps_its_bits(checkpoint: Path, tmp_path: Path) -> None:
    store = convert(checkpoint, tmp_path / "store", bits="none")
    with pytest.raises(ValueError, match=r"none bits \(asked: 4\).*convert its checkpoint tiny-olmoe"):
        convert(store, tmp_path / "other", bits="4")


def test_store_as_the_model_is_not_converted_again(checkpoint: Path, tmp_path: Path) -> None:
    store = convert(checkpoint, tmp_path / "store", bits="none")
    assert convert(store, store, bits="none") == store
    with pytest.raises(ValueError, match="is a store already: run it as it is"):
        convert(store, tmp_path / "other", bits="none")


# --- settings and surroundings -------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"bits": "5"}, {"bits": "4", "group": 48}, {"bits": "4", "group": 0}])
def test_unknown_settings_are_refused_naming_the_known_ones(
    settings: dict[str, Any], checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="allowed: "):
        convert(checkpoint, tmp_path / "store", **settings)


def test_group_that_does_not_divide_leaves_nothing_behind(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a group of 128 does not divide the 64 columns"):
        convert(checkpoint, tmp_path / "store", bits="4", group=128)
    assert list(tmp_path.iterdir()) == []


def test_second_conversion_of_the_same_store_is_refused_while_the_first_runs(
    checkpoint: Path, tmp_path: Path
) -> None:
    with (
        StorePlace(tmp_path / "store").locked(),
        pytest.raises(StoreError, match=r"another conversion is writing .*: wait for it to end"),
    ):
        convert(checkpoint, tmp_path / "store", bits="none")
    assert Manifest.read(convert(checkpoint, tmp_path / "store", bits="none")).num_keys == 16


def test_store_too_large_for_the_disk_is_refused(tmp_path: Path) -> None:
    place = StorePlace(tmp_path / "store")
    place.open_partial()
    with pytest.raises(StoreError, match="free some, or name a folder on another disk"):
        place.check_space(2**60)


def test_folder_in_the_way_of_the_partial_store_is_not_touched(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "store.partial").mkdir()
    (tmp_path / "store.partial" / "mine.txt").touch()
    with pytest.raises(StoreError, match="is in the way"):
        convert(checkpoint, tmp_path / "store", bits="none")
    assert (tmp_path / "store.partial" / "mine.txt").exists()


def test_store_below_a_file_is_refused_with_a_sentence(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="could not be written"):
        convert(checkpoint, tmp_path / "file" / "store", bits="none")


def test_study_reads_no_weights(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(checkpoint / "config.json", tmp_path)
    anatomy = study(tmp_path)
    assert all(parameter.is_meta for parameter in anatomy.model.parameters())
    assert json.loads((tmp_path / "config.json").read_text())["num_experts"] == anatomy.num_experts
