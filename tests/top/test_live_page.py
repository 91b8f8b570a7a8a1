"""A server that answers, looked at: by `sidestage top`, by its live figures, and by a real browser."""

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browser import needs_chromium, page_after_scripts
from support.cli import call
from support.serving import PROMPT, RawStream, Server, serving

from compute.policies import DEFAULT
from launch.top.scene import HEAT
from launch.top.web import LIVE_PATH

SLOTS = 48


@pytest.fixture(scope="module")
def server(store_4bit: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one answer after the other under way, whose figures have come in."""
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, store_4bit, "--slots", str(SLOTS)) as started:
        started.await_ready()
        is_over = threading.Event()
        asking = threading.Thread(target=keep_asking, args=(started, is_over))
        asking.start()
        try:
            await_figures(started)
            yield started
        finally:
            is_over.set()
            asking.join(60)


def keep_asking(server: Server, is_over: threading.Event) -> None:
    while not is_over.is_set():
        stream = RawStream(server, prompt=PROMPT, max_tokens=400)
        for _ in stream.events():
            if is_over.is_set():
                break
        stream.leave()


def live(server: Server) -> dict[str, Any]:
    answer = server.client.get(LIVE_PATH)
    assert answer.status_code == 200
    parsed = answer.json()
    assert isinstance(parsed, dict)
    return parsed


def await_figures(server: Server) -> None:
    """A client's rates need two reports, a second apart."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        scene = live(server)["scene"]
        if scene and scene["clients"] and scene["clients"][0]["tokens_per_s"]:
            return
        time.sleep(0.3)
    raise AssertionError(f"no figures: {live(server)}")


def test_the_live_figures_tell_of_requests_and_of_experts(server: Server) -> None:
    told = live(server)
    assert (told["problem"], told["server"]["status"]) == ("", "ready")
    scene = told["scene"]
    assert (scene["served"]["num_layers"], scene["served"]["num_experts"]) == (6, 32)
    assert [len(row) for row in scene["grid"]] == [32] * 6
    (client,) = scene["clients"]
    assert client["hit"] + client["late"] + client["miss"] == pytest.approx(1)
    assert (client["about"], client["slots"]) == (f"direct, {DEFAULT}, lookahead 1", SLOTS)


def test_top_shows_as_many_cells_in_slots_as_the_client_has(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = call(capsys, "top", str(live(server)["server"]["endpoint"]), "--json", "-").json
    in_slots = sum(cell in HEAT for row in scene["grid"] for cell in row)
    assert 0 < in_slots == scene["clients"][0]["in_slots"] <= SLOTS
    assert scene["loader"]["leased"] > 0


@needs_chromium
def test_a_browser_shows_the_page_with_figures(server: Server, tmp_path: Path) -> None:
    page = page_after_scripts(server.url, tmp_path)
    assert shown(page, "status") == "ready"
    assert shown(page, "shape") == "6 layers down, 32 experts across"
    assert float(shown(page, "tokens")) > 0
    shares = [int(shown(page, name).removesuffix(" %")) for name in ("hit", "late", "miss")]
    assert sum(shares) == pytest.approx(100, abs=2)
    assert re.search(rf"<tr><td>\d+</td>.*direct, {DEFAULT}, lookahead 1", page)
    assert re.search(r'<canvas id="map"[^>]* width="320" height="120"', page)


def test_the_page_needs_nothing_from_elsewhere(server: Server) -> None:
    answer = server.client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.search(r"https?://", answer.text)


def shown(page: str, name: str) -> str:
    """The text of the element with that id."""
    found = re.search(rf'id="{name}"[^>]*>([^<]*)<', page)
    assert found, f"the page has no {name}"
    return found[1]
