"""The frame in a terminal: every line fits, and characters say the same as colours."""

import io

import pytest
from rich.console import Console

from launch.top.render import drawn
from launch.top.sample import Served
from launch.top.scene import ClientRow, LoaderRow, Scene

LOADER = LoaderRow(51, 48, 3, 0, 0, 2, 2.5 * 2**20, 120.0, 0.6, 0.25)
CLIENT = ClientRow(0, 4711, "direct, lru, lookahead 1", 48, 47, False, 52.3, 0.76, 0.01, 0.23, 0.02, None)


def scene(grid: tuple[str, ...] = ("4.+ ", "1   "), *clients: ClientRow) -> Scene:
    served = Served("/run/door", 7, "tiny@1", "olmoe", "4", len(grid), len(grid[0]), 2, 4096)
    return Scene(served, 1, 5.0, LOADER, clients, grid)


def frame(shown: Scene, width: int = 100, height: int | None = None, **console: bool) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, **console).print(drawn(shown, width, height))
    return out.getvalue().splitlines()


def test_figures_and_map_are_told_without_colours() -> None:
    text = "\n".join(frame(scene(("4.+ ", "1   "), CLIENT)))
    assert "2 MoE layers of 4 experts, top-2, 4 bit, 4.0 KiB each" in text
    assert "51 frames: 48 leased, 3 cached, 0 free; queue 2; reads 2.5 MiB/s" in text
    assert "52.3  76%    1%   23%       2%" in text
    assert "47/48" in text
    assert "0 │ ██··++  \n1 │ ░░" in text
    assert "\x1b" not in text


def test_colours_are_off_where_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = scene(("4.+ ",), CLIENT)
    assert any("\x1b[" in line and "32m" in line for line in frame(shown, force_terminal=True))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not any("32m" in line for line in frame(shown, force_terminal=True))


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    lines = frame(scene(("4" * 256,) * 60, CLIENT), width, 24)
    assert max(map(len, lines)) <= width


def test_a_map_that_does_not_fit_shares_lines_and_characters() -> None:
    lines = frame(scene((" " * 255 + "4",) + (" " * 256,) * 59), 100, 24)
    assert len(lines) <= 24
    assert any("█" in line and line.strip().startswith("0") for line in lines)
    assert any("3 experts of 4 layers" in line for line in lines)


def test_a_loader_without_clients_says_so() -> None:
    assert "no client is in" in "\n".join(frame(scene()))
