"""An observer of real loaders: what is there to see, and what happens when a loader dies or is not found."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cli import call
from support.loader_process import LoaderProcess
from support.synthetic_store import make_store
from support.terminal import CTRL_C, on_terminal

from launch.top import find, watch
from launch.top.history import MIN_INTERVAL_S, History
from launch.top.observer import Observer
from protocol.errors import LoaderLostError, SidestageError
from protocol.folder import living_doors
from protocol.messages import Report

TIMEOUT_S = 20.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    make_store(folder, 2, 8, top_k=2, stride_kib=64)
    return folder


@pytest.fixture
def loader(store: Path) -> Iterator[LoaderProcess]:
    with LoaderProcess(store, num_frames=8) as loader:
        yield loader


def test_leases_are_shown_of_a_client_that_reports_nothing(loader: LoaderProcess) -> None:
    with loader.client(quota=4) as client, Observer(loader.endpoint, TIMEOUT_S) as observer:
        for ticket in client.demand(0, 9):
            client.wait(ticket)
        sample = observer.look()
        (seen,) = sample.clients
        assert (seen.in_slots, seen.reported_s) == ({0, 9}, None)
        assert sample.sealed == {0, 9}
        assert sample.stats["frames_leased"] == 2
        assert (sample.served.num_layers, sample.served.num_experts) == (2, 8)


def test_slots_are_what_the_client_reports(loader: LoaderProcess) -> None:
    with loader.client(quota=4) as client, Observer(loader.endpoint, TIMEOUT_S) as observer:
        client.send(Report("emulated", ("hits",), (3,), b"\x80\x01"))
        client.stats()
        (seen,) = observer.look().clients
        assert (seen.in_slots, seen.counters, seen.about) == ({0, 15}, {"hits": 3}, "emulated")


def test_after_a_crash_the_successor_is_looked_at(
    loader: LoaderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.top.history.MIN_INTERVAL_S", 0.0)
    assert MIN_INTERVAL_S > 0
    with History(loader.endpoint, TIMEOUT_S) as history:
        assert history.scene().epoch == 1
        loader.child.send_signal(signal.SIGKILL)
        loader.child.close()
        with pytest.raises(LoaderLostError, match="died"):
            history.scene()
        loader.start()
        scene = history.scene()
        assert (scene.epoch, scene.window_s) == (2, 0.0)


def test_a_loader_that_runs_is_found_and_one_that_died_is_not(loader: LoaderProcess) -> None:
    assert loader.endpoint in map(str, living_doors())
    loader.child.send_signal(signal.SIGKILL)
    loader.child.close()
    assert loader.endpoint not in map(str, living_doors())


def test_the_only_loader_needs_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "living_doors", lambda: [Path("/run/a/door")])
    assert find.only_loader() == "/run/a/door"


def test_several_loaders_are_named_in_the_complaint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "living_doors", lambda: [Path("/run/a/door"), Path("/run/b/door")])
    with pytest.raises(SidestageError, match=r"2 loaders .* /run/a/door, /run/b/door"):
        find.only_loader()


def test_no_loader_is_a_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "living_doors", list)
    answer = call(capsys, "top", "--once")
    assert (answer.code, answer.out) == (1, "")
    assert "no loader of yours runs here" in answer.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("/no/such/door",), "no loader answers at /no/such/door"),
        (("--interval", "0"), "--interval is 0"),
        (("--json", "/no/folder/x.json"), "does not exist"),
    ],
)
def test_what_cannot_be_watched_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    answer = call(capsys, "top", *arguments)
    assert answer.code == 1
    assert words in answer.err


def test_on_a_terminal_frames_follow_one_another_until_ctrl_c(loader: LoaderProcess) -> None:
    with on_terminal("top", loader.endpoint, "--interval", "0.25", kind="xterm") as top:
        top.wait_for("no client is in")
        with loader.client(quota=4) as client:
            top.wait_for("no report")
            client.wait(*client.demand(0))
            top.wait_for("1 leased")
        top.press(CTRL_C)
        assert top.end() == 0
        assert "Traceback" not in top.shown


def test_one_frame_is_written_for_people_and_for_scripts(
    loader: LoaderProcess, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(watch, "LOOK_S", 0.0)
    answer = call(capsys, "top", loader.endpoint, "--once", "--json", tmp_path / "frame.json")
    assert answer.code == 0
    assert "8 frames: 0 leased" in answer.out and "no client is in" in answer.out
    assert call(capsys, "top", loader.endpoint, "--json", "-").json["loader"]["frames"] == 8
    assert (tmp_path / "frame.json").read_text().startswith('{"served":')
