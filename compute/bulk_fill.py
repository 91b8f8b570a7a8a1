"""Bulk fill: every expert of a store into a frame of its own, once, before anything is computed.

Asks the loader for all of them and keeps the leases. Knows nothing of slots or devices.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from compute.client import LoaderClient
from compute.ledger import Completion
from protocol.errors import StoreError

#: Experts on their way at once: enough for every reader, few enough for a smooth bar.
_NUM_ON_THE_WAY = 64

#: Called with (experts there, experts in all).
Progress = Callable[[int, int], None]


def fill_frames(client: LoaderClient, num_keys: int, progress: Progress) -> dict[int, Completion]:
    """Each expert's leased frame, by key. `client`'s quota must be `num_keys` frames at least.

    Raises LoaderLostError when nothing comes for the timeout, StoreError for a damaged expert.
    """
    frame_of: dict[int, Completion] = {}
    key_of: dict[int, int] = {}
    next_key = 0
    while len(frame_of) < num_keys:
        keys = range(next_key, min(next_key + _NUM_ON_THE_WAY - len(key_of), num_keys))
        next_key = keys.stop if keys else next_key
        if keys:
            tickets = client.fetch(demand=[(key, key) for key in keys])
            key_of.update(zip(tickets, keys, strict=True))
        for completion in client.wait():
            if completion.is_dropped:
                raise StoreError(completion.fault or f"expert {key_of[completion.ticket]} was not staged")
            frame_of[key_of.pop(completion.ticket)] = completion
        progress(len(frame_of), num_keys)
    return frame_of


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Shows a fill on stderr, if that is a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("filling host memory"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
