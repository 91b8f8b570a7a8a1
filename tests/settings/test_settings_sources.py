"""sidestage.toml, then SIDESTAGE_*, then flags; a slip in any of them is an error."""

import os
from pathlib import Path

import pytest
from support.cli import assert_refused, call

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and an environment without settings."""
    for name in list(os.environ):
        if name.startswith("SIDESTAGE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _write(folder: Path, text: str, name: str = "sidestage.toml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_flag_stands_over_the_environment_and_that_over_the_file(
    capsys: Capture, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(folder, "seconds = -1")
    assert "--seconds -1:" in assert_refused(call(capsys, "stress"))
    monkeypatch.setenv("SIDESTAGE_SECONDS", "-2")
    assert "--seconds -2:" in assert_refused(call(capsys, "stress"))
    assert "--seconds -3:" in assert_refused(call(capsys, "stress", "--seconds", "-3"))


def test_a_complaint_says_where_the_setting_came_from_unless_it_was_a_flag(
    capsys: Capture, folder: Path
) -> None:
    _write(folder, "[stress]\nclients = 0")
    assert assert_refused(call(capsys, "stress")).endswith("(--clients comes from sidestage.toml [stress])")
    assert "comes from" not in assert_refused(call(capsys, "stress", "--clients", "99"))


def test_what_was_not_passed_as_a_flag_is_said_before_the_work(capsys: Capture, folder: Path) -> None:
    _write(folder, "clients = 0\nseconds = 1")
    answer = call(capsys, "stress", "--seconds", "2")
    assert answer.err.splitlines()[0] == "settings: --clients from sidestage.toml"


def test_a_commands_own_table_stands_over_what_all_commands_share(capsys: Capture, folder: Path) -> None:
    _write(folder, "[bench]\nslots = 9\n[trace.record]\nslots = 8\n")
    _write(folder, "slots = 7\n" + (folder / "sidestage.toml").read_text())
    commands = call(capsys, "config", "--json", "-").json["commands"]
    assert commands["run"]["slots"] == {"value": 7, "from": "sidestage.toml"}
    assert commands["bench"]["slots"] == {"value": 9, "from": "sidestage.toml [bench]"}
    assert commands["trace record"]["slots"] == {"value": 8, "from": "sidestage.toml [trace.record]"}


@pytest.mark.parametrize("command", ["run", "bench", "trace record"])
def test_the_model_may_be_said_in_the_file(capsys: Capture, folder: Path, command: str) -> None:
    _write(folder, 'model = "no/such/model/here"\n[trace.record]\nout = "t.npz"\ntext = "sidestage.toml"')
    assert "no/such/model/here" in assert_refused(call(capsys, *command.split()))


def test_another_file_may_be_named_before_or_by_the_environment(
    capsys: Capture, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(folder, "clients = 0")
    _write(folder, "clients = -1", "other.toml")
    _write(folder, "clients = -2", "third.toml")
    assert "--clients -1" in assert_refused(call(capsys, "stress", "--config", "other.toml"))
    monkeypatch.setenv("SIDESTAGE_CONFIG", "third.toml")
    assert "--clients -2" in assert_refused(call(capsys, "stress"))


def test_a_file_that_is_not_there_is_named(capsys: Capture) -> None:
    assert "--config names no.toml" in assert_refused(call(capsys, "stress", "--config", "no.toml"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("slot = 3", "there is no setting slot: did you mean slots? Known are "),
        ("[run]\nshape = 'x'", "sidestage run has no setting shape: "),
        ("[rum]\nslots = 3", "there is no command [rum]: known are [run], "),
        ("[trace]\nslots = 3", "there is no command [trace]: "),
        ("slots = 4.5", "slots for sidestage run: "),
        ("slots = true", "slots is True; it must be one number or one text"),
        ("slots = [1, 2]", "it must be one number or one text"),
        ("fast = 1", "fast is 1; it must be true or false"),
        ("[simulate]\ncapacity = 0.5", "it must be a list of values"),
        ("slots = ", "cannot be read as TOML"),
    ],
)
def test_a_slip_in_the_file_is_an_error(capsys: Capture, folder: Path, text: str, sentence: str) -> None:
    _write(folder, text)
    refusal = assert_refused(call(capsys, "doctor"))
    assert "sidestage.toml" in refusal
    assert sentence in refusal


def test_a_variable_that_is_no_setting_is_an_error(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDESTAGE_SLOT", "3")
    assert "SIDESTAGE_SLOT is no setting: did you mean SIDESTAGE_SLOTS?" in assert_refused(
        call(capsys, "doctor")
    )


def test_a_variable_of_the_wrong_type_is_an_error(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDESTAGE_SLOTS", "many")
    assert "SIDESTAGE_SLOTS: slots for sidestage run" in assert_refused(call(capsys, "doctor"))


def test_help_is_had_in_spite_of_a_broken_file(capsys: Capture, folder: Path) -> None:
    _write(folder, "slots = ")
    assert call(capsys, "run", "--help").code == 0


def test_config_shows_each_value_with_its_source_and_its_commands(
    capsys: Capture, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(folder, "policy = 'lfu'\n[simulate]\ncapacity = [0.1, 0.2]\nadvise = true")
    monkeypatch.setenv("SIDESTAGE_TOP_P", "0.5")
    lines = [line.split() for line in call(capsys, "config").out.splitlines()]
    assert ["top-p", "0.5", "SIDESTAGE_TOP_P", "run,"] in [line[:4] for line in lines]
    assert ["policy", "lfu", "sidestage.toml", "run,"] in [line[:4] for line in lines]
    assert ["advise", "true", "sidestage.toml", "[simulate]", "simulate"] in lines
    assert ["capacity", "[0.1,", "0.2]", "sidestage.toml", "[simulate]", "simulate"] in lines
    assert ["pp", "64", "default", "bench"] in lines


def test_config_of_one_command_shows_its_settings_alone(capsys: Capture) -> None:
    answer = call(capsys, "config", "doctor", "--json", "-")
    assert answer.json["file"] is None
    assert list(answer.json["commands"]) == ["doctor"]
    assert "did you mean doctor?" in assert_refused(call(capsys, "config", "docter"))


def test_a_flag_alone_can_be_switched_on_by_the_environment(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIDESTAGE_FAST", "1")
    assert call(capsys, "config", "--json", "-").json["commands"]["run"]["fast"]["value"] is True


def test_a_secret_is_shown_to_nobody(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDESTAGE_API_KEY", "s3cret")
    lines = call(capsys, "config", "serve").out
    assert ["api-key", "(hidden)", "SIDESTAGE_API_KEY", "serve"] in [
        line.split() for line in lines.splitlines()
    ]
    assert "s3cret" not in call(capsys, "config", "--json", "-").out
    assert "s3cret" not in lines
