"""Recording: where the spans of an offloaded model go, and how its loader's come to them.

Knows timelines and files; nothing of what is recorded.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from protocol.timeline import Timeline, merge

Destination = Timeline | str | os.PathLike[str] | None


@dataclass(frozen=True, slots=True)
class Recording:
    """`timeline` is ours, None when nothing is recorded; `loader_file` is for a loader that we start."""

    timeline: Timeline | None
    loader_file: Path | None


@contextmanager
def recording(destination: Destination) -> Iterator[Recording]:
    """To a file: both processes' spans are merged into it at the end. To a Timeline: its owner writes it.

    Raises ValueError when the file cannot be written.
    """
    if destination is None or isinstance(destination, Timeline):
        yield Recording(destination, None)
        return
    target = Path(destination).absolute()
    if not os.access(target.parent, os.W_OK):
        raise ValueError(f"--timeline {target}: its folder is missing or cannot be written")
    own, loaders = (target.with_name(f"{target.name}.{end}") for end in ("compute", "loader"))
    timeline = Timeline("compute")
    try:
        yield Recording(timeline, loaders)
        timeline.write(own)
        merge([own, loaders], target)
    finally:
        own.unlink(missing_ok=True)
        loaders.unlink(missing_ok=True)
