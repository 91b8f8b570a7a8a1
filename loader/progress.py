"""A conversion's progress bar: on stderr, and only where that is a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Called with (experts done, experts in all).
Progress = Callable[[int, int], None]


@contextmanager
def progress_bar(name: str) -> Iterator[Progress]:
    """Yields what shows the progress; nothing is shown where stderr is no terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "")

    columns = (
        TextColumn("converting {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("experts"),
    )
    with Bar(*columns, Rate(), TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
