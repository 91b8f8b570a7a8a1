"""One line on stderr that says how a stress run goes, where that is a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_line(seconds: float) -> Iterator[Callable[[float, str], None]]:
    """Yields what is told (seconds gone, words)."""
    if not sys.stderr.isatty():
        yield lambda gone, words: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} s"),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=seconds)
        yield lambda gone, words: bar.update(task, completed=gone, description=words)
