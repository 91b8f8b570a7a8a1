"""`sidestage top` at work: one frame after the other until Ctrl-C, or just one."""

import contextlib
import json as json_text
import sys
import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from launch.output import check_place, write_json
from launch.top.find import only_loader
from launch.top.history import History
from launch.top.render import drawn
from launch.top.scene import Scene
from protocol.errors import SidestageError

#: How long `--once` looks: two reports of a client and a little more.
LOOK_S = 2.5
_LOOK_EVERY_S = 0.5
#: Columns where stdout is no terminal.
PLAIN_WIDTH = 120
MIN_INTERVAL_S, MAX_INTERVAL_S = 0.25, 3600.0


def watch(endpoint: str | None, *, once: bool, interval_s: float, timeout_s: float, json: str | None) -> None:
    """Raises ValueError or SidestageError with a sentence."""
    if not MIN_INTERVAL_S <= interval_s <= MAX_INTERVAL_S:
        raise ValueError(
            f"--interval is {interval_s:g}; allowed is {MIN_INTERVAL_S:g} to {MAX_INTERVAL_S:g} seconds"
        )
    check_place("--json", json)
    with History(endpoint or only_loader(), timeout_s) as history:
        if once or json is not None or not _can_redraw():
            _tell(_one_scene(history), json)
            return
        with contextlib.suppress(KeyboardInterrupt):
            _live(history, interval_s, timeout_s)


def _can_redraw() -> bool:
    return sys.stdout.isatty() and not Console().is_dumb_terminal


def _one_scene(history: History) -> Scene:
    until = time.monotonic() + LOOK_S
    while time.monotonic() < until:
        history.scene()
        time.sleep(_LOOK_EVERY_S)
    return history.scene()


def _tell(scene: Scene, json: str | None) -> None:
    if json is not None:
        write_json(json, json_text.dumps(scene.as_json()))
    if json != "-":
        console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
        console.print(drawn(scene, console.width, None))


def _live(history: History, interval_s: float, timeout_s: float) -> None:
    """Until Ctrl-C. A loader that dies is waited for: whoever owns it starts another."""
    console = Console()
    lost_at: float | None = None
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            try:
                live.update(drawn(history.scene(), console.width, console.height), refresh=True)
                lost_at = None
            except SidestageError as error:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > timeout_s:
                    raise
                live.update(Text(f"{error}\nwaiting for its successor"), refresh=True)
            time.sleep(interval_s)
