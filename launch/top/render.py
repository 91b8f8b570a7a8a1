"""The scene in a terminal: a few lines of figures above a map of every expert. Plain ANSI, no mouse.

Where colours are off (NO_COLOR, no terminal) the characters alone tell the same.
"""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from launch.top.scene import COMING, DISK, FRAME, HEAT, ClientRow, LoaderRow, Scene
from protocol.units import format_size

#: What a cell looks like, and its colour.
_LOOKS = {
    DISK: (" ", ""),
    FRAME: ("·", "bright_black"),
    COMING: ("+", "bold yellow"),
    HEAT[0]: ("░", "blue"),
    HEAT[1]: ("▒", "cyan"),
    HEAT[2]: ("▓", "green"),
    HEAT[3]: ("█", "bright_green"),
}
#: The more a character says, the later: cells that share a place show the last.
_ORDER = DISK + FRAME + HEAT + COMING
_LEGEND = (
    (FRAME, "in a frame"),
    (COMING, "on its way"),
    (HEAT[0], ""),
    (HEAT[1], ""),
    (HEAT[2], ""),
    (HEAT[3], "in a slot, from lately to all the time"),
)
_MIN_WIDTH = 40
#: Characters for one expert, where there is room.
_MOST_WIDE = 2
#: Lines beside the map: title and loader, which fold, and the clients' head above it; below it the note
#: on its scale, the legend, and the cursor.
_OTHER_LINES = 8


def drawn(scene: Scene, width: int, height: int | None) -> RenderableType:
    """`height` None: as many lines as there are MoE layers."""
    room = None if height is None else height - _OTHER_LINES - max(len(scene.clients), 1)
    return Group(
        _title(scene), _loader_line(scene.loader), _clients(scene), _map(scene.grid, width, room), _legend()
    )


def _title(scene: Scene) -> Text:
    served = scene.served
    bits = "unquantized" if served.bits == "none" else f"{served.bits} bit"
    model = (
        f"{served.source.partition('@')[0]}: {served.num_layers} MoE layers of {served.num_experts} experts, "
        f"top-{served.top_k}, {bits}, {format_size(served.expert_bytes)} each"
    )
    where = f"loader {served.pid} at {served.endpoint}"
    again = f", its successor number {scene.epoch - 1}" if scene.epoch > 1 else ""
    return Text.assemble((model, "bold"), f"\n{where}{again}", overflow="fold")


def _loader_line(loader: LoaderRow) -> Text:
    parts = [
        f"{loader.frames} frames: {loader.leased} leased, {loader.cached} cached, {loader.free} free",
        f"queue {loader.queue}",
        f"reads {_size(loader.bytes_per_s)}/s",
        f"{_number(loader.fetches_per_s)} fetches/s, {_share(loader.host_hit_rate)} of them from a frame",
        f"a read fetch waits {_number(loader.fetch_ms)} ms",
    ]
    return Text("; ".join(parts), overflow="fold")


def _clients(scene: Scene) -> RenderableType:
    if not scene.clients:
        return Text("no client is in", style="yellow")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("process", "tok/s", "hit", "late", "miss", "stalled", "link", "in slots"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("runs", overflow="fold")
    for client in scene.clients:
        table.add_row(*_cells(client))
    return table


def _cells(client: ClientRow) -> list[str | Text]:
    about = client.about or "no report: its leases are shown"
    return [
        str(client.pid),
        _number(client.tokens_per_s),
        Text(_share(client.hit), style="green"),
        Text(_share(client.late), style="yellow"),
        Text(_share(client.miss), style="red"),
        _share(client.stalled),
        f"{_size(client.link_bytes_per_s)}/s" if client.link_bytes_per_s else "-",
        f"{client.in_slots}/{client.slots}",
        f"{about} (idle)" if client.about and client.is_idle else about,
    ]


def _map(grid: tuple[str, ...], width: int, height: int | None) -> Text:
    """A line a layer, a cell an expert; where there is no room several share a line or a cell."""
    margin = len(str(len(grid) - 1)) + 3
    columns = max(width, _MIN_WIDTH) - margin - 1
    across = -(-len(grid[0]) // columns)
    wide = min(_MOST_WIDE, max(columns // len(grid[0]), 1))
    down = 1 if height is None else -(-len(grid) // max(height, 4))
    text = Text(no_wrap=True, overflow="crop")
    for first in range(0, len(grid), down):
        rows = grid[first : first + down]
        text.append(f"{first:>{margin - 3}} │ ")
        for start in range(0, len(grid[0]), across):
            char, style = _LOOKS[max("".join(row[start : start + across] for row in rows), key=_ORDER.index)]
            text.append(char * wide, style)
        text.append("\n")
    if across * down > 1:
        text.append(f"a character is {across} experts of {down} layers, and shows the one most in use\n")
    text.right_crop()
    return text


def _legend() -> Text:
    text = Text()
    for cell, words in _LEGEND:
        char, style = _LOOKS[cell]
        text.append(char, style).append(f" {words}  " if words else "")
    return text


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _size(value: float | None) -> str:
    return "-" if value is None else format_size(value)
