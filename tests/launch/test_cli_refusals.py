"""Bad input is answered with one sentence and an exit code, never with a traceback."""

import json
import shutil
from pathlib import Path

import pytest
from support.cli import assert_refused, call, run
from support.tiny_models import make_checkpoint

from protocol.manifest import MANIFEST_FILE

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def damaged_store(store_4bit: Path, tmp_path: Path) -> Path:
    """A copy of a store that a test may damage."""
    return Path(shutil.copytree(store_4bit, tmp_path / "store"))


def test_wrong_usage_is_exit_code_2(capsys: Capture) -> None:
    for arguments in (
        ("run", "--no-such-option"),
        ("run", "--slots", "many"),
        ("convert", "only-one"),
        ("fly",),
    ):
        assert call(capsys, *arguments).code == 2


def test_a_missing_model_is_named(capsys: Capture) -> None:
    assert_refused(call(capsys, "run", "no/such/model/here"), "no/such/model/here")


def test_a_file_is_no_model(capsys: Capture, store_4bit: Path) -> None:
    assert_refused(call(capsys, "run", store_4bit / MANIFEST_FILE), "is a file")


def test_a_folder_without_a_config_is_no_model(capsys: Capture, tmp_path: Path) -> None:
    assert_refused(call(capsys, "run", tmp_path), "config.json")


def test_a_wrong_size_is_named_with_its_option(capsys: Capture) -> None:
    assert_refused(call(capsys, "run", "--ram", "seven"), "--ram", "'seven' is not a size")


def test_a_wrong_rate_is_named_with_its_option(capsys: Capture) -> None:
    answer = call(capsys, "run", "--arrangement", "emulated", "--link", "40MB")
    assert_refused(answer, "--link", "40MB/s")


def test_an_unknown_policy_is_answered_with_the_known_ones(capsys: Capture) -> None:
    assert_refused(call(capsys, "run", "--policy", "mru"), "lru", "lfu-aged", "least-stale")


def test_more_ram_than_there_is_is_refused_with_both_numbers(capsys: Capture, store_4bit: Path) -> None:
    assert_refused(call(capsys, "run", store_4bit, "--ram", "7000TiB"), "7000.0 TiB of RAM asked", "free")


def test_fewer_slots_than_top_k_are_refused(capsys: Capture, store_4bit: Path) -> None:
    assert_refused(call(capsys, "run", store_4bit, "--slots", "3"), "at least 4 slots")


def test_ram_for_fewer_experts_than_top_k_is_refused(capsys: Capture, store_4bit: Path) -> None:
    assert_refused(call(capsys, "run", store_4bit, "--ram", "64KiB"), "at least")


@pytest.mark.parametrize("arrangement", ["pinned", "staged"])
def test_arrangements_with_a_gpu_are_refused_without_one(
    capsys: Capture, store_4bit: Path, arrangement: str
) -> None:
    answer = call(capsys, "run", store_4bit, "--arrangement", arrangement)
    assert_refused(answer, arrangement, "direct or emulated")


def test_a_network_endpoint_is_refused(capsys: Capture, store_4bit: Path) -> None:
    assert_refused(call(capsys, "run", store_4bit, "--connect", "tcp://127.0.0.1:5555"), "tcp is refused")
    assert_refused(call(capsys, "loader", store_4bit, "--endpoint", "tcp://0.0.0.0:5555"), "tcp is refused")


def test_a_store_of_other_bits_than_asked_is_refused(capsys: Capture, store_4bit: Path) -> None:
    assert_refused(call(capsys, "run", store_4bit, "--bits", "2"), "--bits is 2", "with 4")


def test_a_truncated_store_is_refused(capsys: Capture, damaged_store: Path) -> None:
    shard = max(damaged_store.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    assert_refused(call(capsys, "run", damaged_store), "truncated")


def test_a_store_of_another_schema_is_refused(capsys: Capture, damaged_store: Path) -> None:
    manifest = damaged_store / MANIFEST_FILE
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema": 99}))
    assert_refused(call(capsys, "run", damaged_store), "schema 99", "convert again")


def test_a_place_that_cannot_be_written_is_refused_before_the_work(capsys: Capture, tmp_path: Path) -> None:
    assert_refused(call(capsys, "run", "--json", tmp_path / "no" / "out.json"), "does not exist")
    assert_refused(call(capsys, "run", "--timeline", tmp_path), "is a folder")


def test_a_checkpoint_cannot_be_served(capsys: Capture, shipped_model: Path) -> None:
    assert_refused(call(capsys, "loader", shipped_model), "sidestage convert")


def test_a_missing_store_cannot_be_served(capsys: Capture) -> None:
    assert_refused(call(capsys, "loader", "no/such/store"), "no/such/store")


def test_an_endpoint_that_is_a_file_is_left_alone(capsys: Capture, store_4bit: Path, tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("mine")
    assert_refused(call(capsys, "loader", store_4bit, "--endpoint", taken), "is there already")
    assert taken.read_text() == "mine"


def test_a_model_without_experts_is_refused_at_conversion(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    )
    (tmp_path / "model.safetensors").touch()
    assert_refused(call(capsys, "convert", tmp_path, tmp_path / "store"), "experts")


def test_a_quantized_checkpoint_is_refused_at_conversion(capsys: Capture, tmp_path: Path) -> None:
    checkpoint = make_checkpoint("olmoe", tmp_path / "checkpoint")
    config = checkpoint / "config.json"
    quantized = {**json.loads(config.read_text()), "quantization_config": {"quant_method": "fp8"}}
    config.write_text(json.dumps(quantized))
    assert_refused(call(capsys, "convert", checkpoint, tmp_path / "store"), "fp8")


def test_a_prompt_longer_than_the_context_is_refused(store_4bit: Path) -> None:
    answer = run("run", store_4bit, "--prompt", "king " * 600, "--threads", "1")
    assert_refused(answer, "the model's context holds 512")


def test_nobody_at_the_endpoint_is_told_within_the_timeout(tmp_path: Path) -> None:
    answer = run("run", "--connect", tmp_path / "nobody", "--timeout", "2")
    assert_refused(answer, "nobody", "sidestage loader")
