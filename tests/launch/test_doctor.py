"""`sidestage doctor` sees what is well, and what is not."""

import json
import os
import shutil
import tomllib
from pathlib import Path

import pytest
from support.cli import call

from compute.cache_folder import cache_home
from launch.doctor import disk, machine, software
from loader.store import StorePlace
from protocol.cgroup import MemoryGroup

Capture = pytest.CaptureFixture[str]


def _status_of(name: str, answer: str) -> str:
    return next(check["status"] for check in json.loads(answer)["checks"] if check["name"] == name)


def test_this_machine_is_well_and_every_line_says_so(capsys: Capture) -> None:
    answer = call(capsys, "doctor")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert len(lines) >= 14
    assert all(line.split()[0] in ("ok", "warn") for line in lines)


def test_json_holds_every_check(capsys: Capture) -> None:
    answer = call(capsys, "doctor", "--json", "-")
    assert answer.json["ok"] is True
    assert {"name", "status", "text", "fix"} == set(answer.json["checks"][0])


def test_a_good_store_passes(capsys: Capture, store_4bit: Path) -> None:
    answer = call(capsys, "doctor", "--store", store_4bit)
    assert answer.code == 0
    assert "192 experts, 4 bit" in answer.out


def test_one_flipped_bit_in_a_store_is_found(capsys: Capture, store_4bit: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(store_4bit, tmp_path / "store"))
    shard = max(store.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    with shard.open("r+b") as file:
        file.seek(-5000, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    answer = call(capsys, "doctor", "--store", store, "--json", "-")
    assert answer.code == 1
    assert _status_of(f"store {store}", answer.out) == "fail"


def test_a_folder_that_is_no_store_fails_with_a_sentence(capsys: Capture, tmp_path: Path) -> None:
    answer = call(capsys, "doctor", "--store", tmp_path)
    assert answer.code == 1
    assert "is not a store" in answer.out


def _dead_socket_folder() -> Path:
    left = Path(os.environ["XDG_RUNTIME_DIR"]) / "sidestage" / "999999999-abcd"
    left.mkdir(parents=True, mode=0o700)
    left.parent.chmod(0o700)
    return left


def test_a_folder_left_by_a_crash_is_named(capsys: Capture) -> None:
    left = _dead_socket_folder()
    try:
        answer = call(capsys, "doctor", "--json", "-")
        sockets = next(check for check in answer.json["checks"] if check["name"] == "sockets")
        assert sockets["status"] == "warn"
        assert str(left) in sockets["text"]
        assert sockets["fix"] == "sidestage doctor --clean"
    finally:
        left.rmdir()


def test_clean_removes_leftovers_and_keeps_what_is_whole_or_in_use(
    capsys: Capture, store_4bit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    stores = cache_home() / "stores"
    whole = Path(shutil.copytree(store_4bit, stores / "whole"))
    broken = Path(shutil.copytree(store_4bit, stores / "broken"))
    max(broken.glob("*.safetensors"), key=lambda path: path.stat().st_size).write_bytes(b"short")
    for name in ("dead.partial", "busy.partial"):
        (stores / name).mkdir()
    sockets = _dead_socket_folder()
    with StorePlace(stores / "busy").locked():
        answer = call(capsys, "doctor", "--clean")
    assert answer.code == 0
    assert [line for line in answer.out.splitlines() if "removed" in line] == [
        f"ok    clean: removed {folder}" for folder in (sockets, stores / "dead.partial", broken)
    ]
    assert sorted(path.name for path in stores.iterdir()) == ["busy.partial", "whole"]
    assert "still there" not in answer.out
    assert whole.is_dir()


def test_an_unfinished_conversion_is_a_warning(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (cache_home() / "stores" / "dead.partial").mkdir(parents=True)
    answer = call(capsys, "doctor", "--json", "-")
    assert _status_of("cache", answer.out) == "warn"


def test_the_disks_speed_is_measured_and_nothing_stays(tmp_path: Path) -> None:
    finding = disk.disk_speed(tmp_path / "not" / "there" / "yet")
    assert "GB/s from the disk" in finding.text
    assert "GB/s from the page cache" in finding.text
    assert not any(tmp_path.iterdir())


def test_a_slow_disk_is_a_warning_with_a_way_out() -> None:
    assert disk.speed_finding("/disk", 50e6, 5e9).status == "warn"
    assert "--ram" in disk.speed_finding("/disk", 50e6, 5e9).fix
    assert disk.speed_finding("/disk", 2e9, 5e9).status == "ok"


def test_a_container_with_little_memory_left_is_a_warning() -> None:
    assert machine.limited_by(MemoryGroup(Path("/g"), 4 * 2**30, 2**30)).status == "warn"
    assert machine.limited_by(MemoryGroup(Path("/g"), 8 * 2**30, 4 * 2**30)).status == "ok"


@pytest.mark.parametrize(
    ("text", "release"),
    [("2.13.0+cpu", (2, 13, 0)), ("0.2.8.post1", (0, 2, 8)), ("5.23.0.dev0", (5, 23, 0)), ("x", ())],
)
def test_versions_are_compared_by_their_numbers(text: str, release: tuple[int, ...]) -> None:
    assert software.release_of(text) == release


def test_an_absent_or_old_distribution_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(software.VERSIONS, "no-such-thing", ((1,), ()))
    assert software.distribution("no-such-thing").status == "fail"
    monkeypatch.setitem(software.VERSIONS, "torch", ((99,), ()))
    assert software.distribution("torch").status == "fail"


def test_a_version_that_was_never_tried_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(software.VERSIONS, "torch", ((2,), (2, 1)))
    assert software.distribution("torch").status == "warn"


def test_the_versions_are_those_that_the_package_declares() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    declared = {text.partition(">=")[0]: text.partition(">=")[2] for text in project["dependencies"]}
    for name, (first, _) in software.VERSIONS.items():
        assert declared[name].partition(",")[0] == ".".join(map(str, first))
