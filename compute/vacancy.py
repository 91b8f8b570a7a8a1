"""Vacancy: what a loader that already runs serves, and how many of its frames nobody has reserved.

A client has to say its quota when it comes in; so it looks in first, as the smallest of guests,
and leaves again. Knows nothing of slots.
"""

import os
import time
from dataclasses import dataclass

from compute.client import LoaderClient
from protocol.arena import C_PID, C_QUOTA, Words
from protocol.errors import LoaderLostError

_LOOK_IN_QUOTA = 1
_POLL_S = 0.002


@dataclass(frozen=True, slots=True)
class Vacancy:
    """`num_frames` are free; `store` is the fingerprint of the store in folder `store_path`."""

    num_frames: int
    store: str
    store_path: str


def look_in(endpoint: str, store: str, timeout_s: float | None) -> Vacancy:
    """Ask the loader at `endpoint`; `store` is the fingerprint it must serve, "" for any.

    Raises LoaderLostError, or RefusedError with the loader's sentence (no frame at all is free).
    """
    with LoaderClient(endpoint, quota=_LOOK_IN_QUOTA, store=store, timeout_s=timeout_s) as guest:
        rows = guest.arena.clients
        num_guests = _num_guests(rows)
        promised = int(rows[:, C_QUOTA][rows[:, C_PID] != 0].sum()) - _LOOK_IN_QUOTA
        free = guest.arena.geometry.num_frames - promised
        vacancy = Vacancy(free, guest.store, guest.store_path)
        patience_s = guest.timeout_s
    _await_departure(rows, num_guests, patience_s)
    return vacancy


def _num_guests(rows: Words) -> int:
    """Clients of this process that only look in."""
    return int(((rows[:, C_PID] == os.getpid()) & (rows[:, C_QUOTA] == _LOOK_IN_QUOTA)).sum())


def _await_departure(rows: Words, num_guests: int, timeout_s: float) -> None:
    """Until the loader has heard our goodbye, the frame we reserved is not free."""
    until = time.monotonic() + timeout_s
    while _num_guests(rows) >= num_guests:
        if time.monotonic() > until:
            raise LoaderLostError(
                f"the loader did not let us go within {timeout_s:g} s (raise --timeout or SIDESTAGE_TIMEOUT)"
            )
        time.sleep(_POLL_S)
