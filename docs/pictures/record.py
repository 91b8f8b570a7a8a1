"""Records the README's picture: a real run of the shipped model, and what `sidestage top` shows of it.

`make picture` runs it and writes docs/pictures/run-and-top.svg. Nothing is made up: the text, the figures
and the map are those of the run that was recorded; only the middle of the story is left out.
"""

import io
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.text import Text

from launch.top.history import History
from launch.top.render import drawn
from launch.top.scene import Scene
from protocol.errors import SidestageError
from protocol.folder import living_doors

PICTURE = Path(__file__).parent / "run-and-top.svg"
COMMAND = ("sidestage", "run", "--slots", "48", "--seed", "3", "--max-new-tokens", "400", "--prompt")
PROMPT = "Once upon a time there was a king who"
WIDTH = 110
#: Of the story, at its beginning.
NUM_LINES = 5
#: By then the last seconds are full of reports.
LOOK_S = 5.0


@dataclass(frozen=True, slots=True)
class Recording:
    """What the run wrote, and the last look at it while it ran."""

    text: str
    summary: list[str]
    scene: Scene


def record() -> Recording:
    """Run and look. Raises RuntimeError when there was nothing to see."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", "from launch.cli import main; main()", *COMMAND[1:], PROMPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        scene = _look_at(process)
        out, err = process.communicate(timeout=600)
    if process.returncode or scene is None:
        raise RuntimeError(
            f"the run ended with {process.returncode} and was seen: {scene is not None}\n{err}"
        )
    return Recording(out, err.strip().splitlines()[-2:], scene)


def _look_at(process: "subprocess.Popen[str]") -> Scene | None:
    """The last scene in which the run had figures, of the first seconds that it had them."""
    scene, history, first_s = None, None, time.monotonic()
    while process.poll() is None and (scene is None or time.monotonic() - first_s < LOOK_S):
        time.sleep(0.3)
        try:
            doors = _own_doors() if history is None else []
            history = history or (History(str(doors[0]), 10.0) if doors else None)
            seen = history.scene() if history else None
        except SidestageError:
            continue  # the loader comes up, or goes
        if seen and seen.clients and seen.clients[0].tokens_per_s:
            first_s = time.monotonic() if scene is None else first_s
            scene = seen
    if history is not None:
        history.close()
    return scene


def _own_doors() -> list[Path]:
    """Nobody else's loader gets into the picture."""
    return [door for door in living_doors() if door.is_relative_to(os.environ["XDG_RUNTIME_DIR"])]


def draw(recording: Recording) -> str:
    """The terminal with both commands, as SVG without anything from elsewhere."""
    console = Console(
        record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(Text(f'$ {" ".join(COMMAND)} "{PROMPT}"', style="bold cyan"))
    told = Text(PROMPT + recording.text.rstrip()).wrap(console, WIDTH)
    for line in told[:NUM_LINES]:
        console.print(line)
    console.print(Text("[...]", style="dim"))
    for sentence in recording.summary:
        console.print(Text(sentence, style="dim"))
    console.print()
    console.print(Text("$ sidestage top", style="bold cyan"))
    console.print(drawn(recording.scene, WIDTH, None))
    picture = console.export_svg(title="sidestage")
    return re.sub(r"@font-face\s*{[^}]*}\s*", "", picture)


def main() -> None:
    """Record, draw, write."""
    with TemporaryDirectory(prefix="sidestage-") as folder:
        os.chmod(folder, 0o700)
        os.environ["XDG_RUNTIME_DIR"] = folder
        PICTURE.write_text(draw(record()), encoding="utf-8")
    sys.stdout.write(f"{PICTURE}\n")


if __name__ == "__main__":
    main()
