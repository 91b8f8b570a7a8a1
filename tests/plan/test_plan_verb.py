"""`sidestage plan` as people meet it: advice, settings that `run` takes, a sentence for each slip."""

import shutil
from pathlib import Path

import pytest
from support.cli import call

#: States every speed, so that nothing is measured.
STATED = ("--compute", "2GB/s", "--link", "1GB/s")


@pytest.fixture(scope="module")
def config_only(shipped_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a model's config and nothing else."""
    folder = tmp_path_factory.mktemp("config")
    shutil.copy(shipped_model / "config.json", folder)
    return folder


def test_a_plan_says_what_fits_and_how_fast(capsys: pytest.CaptureFixture[str], config_only: Path) -> None:
    answer = call(capsys, "plan", config_only, "--slots", "48", *STATED)
    assert answer.code == 0
    for words in (
        "olmoe, 6 MoE layers of 32 experts, top-4",
        "48 of 192 experts (25%): --slots 48",
        "direct: the device is the CPU",
        "953.7 MiB/s as stated",
        "tok/s, decode of one sequence",
        f"sidestage run {config_only} --bits 4 --slots 48 --lookahead",
    ):
        assert words in answer.out


def test_the_object_for_scripts_has_the_same(capsys: pytest.CaptureFixture[str], config_only: Path) -> None:
    told = call(capsys, "plan", config_only, "--slots", "48", *STATED, "--json", "-").json
    assert (told["fits"], told["slots"], told["frames"], told["arrangement"]) == (True, 48, 51, "direct")
    assert told["expert_bytes_total"] == 192 * told["expert_bytes"] == 192 * 24576
    assert 0.4 < told["hit_rate"]["likely"] < 0.5
    band = told["tokens_per_second"]
    assert 0 < band["low"] < band["likely"] < band["high"] < told["resident_tokens_per_second"]["high"]


def test_a_device_is_planned_where_there_is_none(
    capsys: pytest.CaptureFixture[str], config_only: Path
) -> None:
    told = call(capsys, "plan", config_only, "--vram", "2MiB", "--ram", "64MiB", "--json", "-").json
    assert (told["arrangement"], told["frames"]) == ("pinned", 192)
    assert told["device_bytes"] == 85 * 24576 + told["dense_bytes"] + told["kv_bytes"]
    tight = call(capsys, "plan", config_only, "--vram", "2MiB", "--ram", "1MiB", "--json", "-").json
    assert (tight["arrangement"], tight["frames"]) == ("staged", 2**20 // 24576)


def test_what_does_not_fit_is_told_and_not_forbidden(
    capsys: pytest.CaptureFixture[str], config_only: Path
) -> None:
    answer = call(capsys, "plan", config_only, "--vram", "50KiB")
    assert answer.code == 0
    assert "does not fit  --vram 50.0 KiB holds 2 experts, at least 5 are needed" in answer.out
    assert "sidestage run" not in answer.out


def test_what_was_saved_is_what_run_takes(
    capsys: pytest.CaptureFixture[str], config_only: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "run.toml"
    call(capsys, "plan", config_only, "--ram", "1536KiB", "--bits", "3", *STATED, "--save", saved)
    told = call(capsys, "config", "run", "--config", saved, "--json", "-").json
    settings = {name: each["value"] for name, each in told["commands"]["run"].items()}
    assert settings["model"] == str(config_only)
    assert (settings["bits"], settings["ram"], settings["slots"]) == ("3", "1536KiB", None)


def test_every_expert_in_a_slot_misses_nothing(capsys: pytest.CaptureFixture[str], config_only: Path) -> None:
    told = call(capsys, "plan", config_only, "--slots", "192", *STATED, "--json", "-").json
    assert told["hit_rate"] == {"low": 1.0, "likely": 1.0, "high": 1.0}
    assert told["tokens_per_second"] == told["resident_tokens_per_second"]
    assert told["lookahead"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--slots", "2"), "a token of this model uses 4 experts"),
        (("--context", "513"), "the model's context holds 512 tokens"),
        (("--context", "0"), "--context is 0"),
        (("--slots", "9", "--vram", "1GiB"), "pass one of them"),
        (("--ram", "0"), "must be above 0"),
        (("--vram", "lots"), "--vram: 'lots' is not a size"),
        (("--link", "5"), "--link: '5' is not a rate"),
        (("--bits", "5"), "--bits is '5'"),
        (("--group", "100"), "does not divide"),
        (("--threads", "0"), "--threads is 0"),
        (("--save", "-"), "--save writes a file"),
        (("--save", "/no/folder/run.toml"), "does not exist"),
        (("--slots", "9", "--compute", "1GB/s", "--trace", "nowhere.npz"), "nowhere.npz"),
    ],
)
def test_slips_are_answered_with_a_sentence(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str], config_only: Path
) -> None:
    answer = call(capsys, "plan", config_only, *arguments)
    told = answer.out + answer.err
    assert words in told and "Traceback" not in told
    assert answer.code == 1 or "does not fit" in told
