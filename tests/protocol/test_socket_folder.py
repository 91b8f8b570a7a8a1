"""The sockets' folder: private, short, and gone afterwards."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from protocol.folder import DOOR_NAME, create_folder, prepare_folder, remove_folder, remove_stale_folders


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def abandoned_door(folder: Path) -> None:
    """A door nobody listens at any more."""
    folder.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(folder / DOOR_NAME))


def test_the_folder_is_private_and_in_the_runtime_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = create_folder()
    assert folder.parent == tmp_path / "sidestage"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    remove_folder(folder)
    assert not list(tmp_path.iterdir())


def test_two_folders_of_one_process_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    one, other = create_folder(), create_folder()
    assert one != other
    remove_folder(one)
    assert other.is_dir()
    remove_folder(other)
    remove_folder(other)


@pytest.mark.parametrize("runtime", ["", "relative/path", "/nonexistent/for/sure", "x" * 120])
def test_without_a_usable_runtime_folder_the_temporary_one_serves(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if len(runtime) > 100:
        runtime = str(tmp_path / runtime)
        Path(runtime).mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    folder = create_folder()
    assert folder.parent.name.startswith(f"sidestage-{os.getuid()}")
    assert len(os.fsencode(folder / DOOR_NAME)) <= 107
    remove_folder(folder)


def test_a_folder_open_to_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    with pytest.raises(ValueError, match="open to others"):
        prepare_folder(tmp_path / "open")


def test_a_link_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match="not a folder of user"):
        prepare_folder(tmp_path / "link")


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="107 are allowed"):
        prepare_folder(tmp_path / ("x" * 100))


def test_a_base_squatted_by_others_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sidestage").mkdir()
    (tmp_path / "sidestage").chmod(0o777)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = create_folder()
    assert tmp_path not in folder.parents
    remove_folder(folder)


def test_folders_of_dead_processes_are_swept(tmp_path: Path) -> None:
    abandoned_door(tmp_path / f"{dead_pid()}-aa")
    remove_stale_folders(tmp_path)
    assert not list(tmp_path.iterdir())


def test_folders_of_the_living_the_answering_and_the_young_stay(tmp_path: Path) -> None:
    living = tmp_path / f"{os.getpid()}-aa"
    abandoned_door(living)
    young = tmp_path / f"{dead_pid()}-bb"
    young.mkdir()
    answering = tmp_path / f"{dead_pid()}-cc"
    answering.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(answering / DOOR_NAME))
        listener.listen()
        remove_stale_folders(tmp_path)
        assert living.is_dir() and young.is_dir() and answering.is_dir()
    old = time.time() - 3600
    os.utime(young, (old, old))
    remove_stale_folders(tmp_path)
    assert living.is_dir() and not young.exists() and not answering.exists()
