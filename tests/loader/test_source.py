"""A checkpoint is found in a folder or in huggingface_hub's own cache, and known again by its identity."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loader.source import find_source
from protocol.errors import ModelError

FIND = (
    "import sys; from loader.source import find_source; s = find_source(sys.argv[1]); print(s.name, s.folder)"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards, their index, and files that belong to no model."""
    folder = tmp_path / "some-model"
    folder.mkdir()
    files = {"a.weight": "model-00001.safetensors", "b.weight": "model-00002.safetensors"}
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    for name in (*files.values(), "consolidated.safetensors", "tokenizer.json", "notes.md"):
        (folder / name).write_text(name)
    return folder


def test_weights_are_those_that_the_index_names(folder: Path) -> None:
    source = find_source(folder)
    assert [path.name for path in source.weights] == ["model-00001.safetensors", "model-00002.safetensors"]


def test_companions_are_what_belongs_to_a_model(folder: Path) -> None:
    assert [str(path) for path in find_source(folder).companions()] == ["config.json", "tokenizer.json"]


def test_name_is_that_of_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert find_source(".").name == "some-model"


def test_identity_is_the_same_for_the_same_files(folder: Path) -> None:
    assert find_source(folder).identity == find_source(str(folder)).identity


@pytest.mark.parametrize("name", ["config.json", "model-00001.safetensors", "model-00002.safetensors"])
def test_identity_changes_with_every_file_that_matters(name: str, folder: Path) -> None:
    before = find_source(folder).identity
    (folder / name).write_text('{"changed": true}')
    assert find_source(folder).identity != before


def in_hub_cache(home: Path, folder: Path, model: str) -> Path:
    """Put `folder` where huggingface_hub keeps what it downloaded; the snapshot's folder."""
    cached = home / "hub" / f"models--{model.replace('/', '--')}"
    snapshot = cached / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.parent.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(snapshot.name)
    folder.rename(snapshot)
    return snapshot


def find_offline(model: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    argv = [sys.executable, "-c", FIND, model]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)


def test_hub_id_is_found_in_the_hubs_own_cache_while_offline(folder: Path, tmp_path: Path) -> None:
    snapshot = in_hub_cache(tmp_path / "home", folder, "some-org/some-model")
    found = find_offline("some-org/some-model", tmp_path / "home")
    assert found.stdout == f"some-org/some-model {snapshot}\n", found.stderr


def test_half_downloaded_model_is_refused_while_offline(folder: Path, tmp_path: Path) -> None:
    snapshot = in_hub_cache(tmp_path / "home", folder, "some-org/some-model")
    (snapshot / "model-00002.safetensors").unlink()
    found = find_offline("some-org/some-model", tmp_path / "home")
    assert "model-00002.safetensors is missing, download it again" in found.stderr


def test_path_that_looks_like_one_is_never_asked_of_the_hub() -> None:
    with pytest.raises(ModelError, match="there is no folder \\./nothing"):
        find_source("./nothing")
