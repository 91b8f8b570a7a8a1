"""Arrangements "pinned" and "staged": slots in a device's memory, and the way to them.

`pinned`: every expert lies in a page-locked frame, and no loader is on the path. `staged`: the
loader brings experts to fewer frames, which are page-locked as far as the system allows. What
cannot be had falls from the first to the second, and says so.
"""

from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compute.arrays import IntArray
from compute.budget import Budget
from compute.bulk_fill import fill_frames, progress_bar
from compute.client import LoaderClient
from compute.ledger import Completion
from compute.transports.cuda_link import CHUNK_BYTES, CudaLink
from compute.transports.driver import Driver
from compute.transports.ends import Frames
from compute.transports.linked import LinkedTransport
from compute.transports.page_lock import PageLock, lock_frames
from compute.transports.pinned_frames import PinnedFrames
from compute.transports.staging import Staging
from protocol.errors import MemoryBudgetError
from protocol.timeline import Timeline
from protocol.units import format_size


@dataclass(frozen=True, slots=True)
class CudaWay:
    """A transport that runs, and sentences for the user about what could not be had.

    `frame_addresses`: where the device reads each expert by itself, by key; in pinned only.
    """

    transport: LinkedTransport
    notices: tuple[str, ...]
    frame_addresses: IntArray | None


def open_cuda_transport(
    driver: Driver,
    client: LoaderClient,
    *,
    arrangement: str,
    num_keys: int,
    budget: Budget,
    pin_bytes: int | None,
    timeline: Timeline | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> CudaWay:
    """Closing the transport closes `client`, whose mapping must be writable.

    `pin_bytes`: what may be page-locked at most, None for as much as the driver grants. Raises
    MemoryBudgetError when the slots do not fit on the device, and what `fill_frames` raises.
    """
    pool = open_pool(driver, budget.num_slots, budget.num_transit, client.arena.geometry.frame_bytes)
    frame_of = _fill(client, num_keys) if arrangement == "pinned" else {}
    with ExitStack() as opened:
        lock, ring = lock_frames(driver, client.arena, pin_bytes, chunk_bytes)
        opened.callback(lock.close)
        if ring:
            opened.callback(ring.close)
        notices = _notices(arrangement, lock, client)
        if frame_of and not lock.is_whole:
            client.release([completion.ticket for completion in frame_of.values()])
            arrangement, frame_of = "staged", {}
        transport = LinkedTransport(
            client,
            _frames(client, frame_of, timeline),
            CudaLink(driver, lock, pool, ring=ring, chunk_bytes=chunk_bytes, timeline=timeline),
            pool,
            arrangement=arrangement,
            num_transit=budget.num_transit,
            chunk_bytes=chunk_bytes,
        )
        opened.pop_all()
    transport.start()
    return CudaWay(transport, notices, _addresses(lock, frame_of) if frame_of else None)


def open_pool(driver: Driver, num_slots: int, num_transit: int, stride: int) -> Tensor:
    """uint8 [num_slots + num_transit, stride] on the device. Raises MemoryBudgetError."""
    try:
        return torch.empty(num_slots + num_transit, stride, dtype=torch.uint8, device=driver.device)
    except torch.OutOfMemoryError:
        raise MemoryBudgetError(_too_small(driver, num_slots, num_transit, stride)) from None


def _too_small(driver: Driver, num_slots: int, num_transit: int, stride: int) -> str:
    free, _ = driver.memory()
    fit = max(free // stride - num_transit, 0)
    taken = format_size((num_slots + num_transit) * stride)
    return (
        f"{num_slots} slots and {num_transit} for transit take {taken}, "
        f"{format_size(free)} are free on {driver.name}: {fit} slots would fit, pass --slots {fit} or fewer"
    )


def _fill(client: LoaderClient, num_keys: int) -> dict[int, Completion]:
    with progress_bar() as progress:
        return fill_frames(client, num_keys, progress)


def _frames(client: LoaderClient, frame_of: dict[int, Completion], timeline: Timeline | None) -> Frames:
    if frame_of:
        return PinnedFrames(frame_of, client.stats(), timeline)
    return Staging(client, max_prefetches=max(client.quota // 2, 1))


def _addresses(lock: PageLock, frame_of: dict[int, Completion]) -> IntArray:
    return np.array([lock.address_of(frame_of[key]) for key in range(len(frame_of))], np.int64)


def _notices(arrangement: str, lock: PageLock, client: LoaderClient) -> tuple[str, ...]:
    if lock.is_whole:
        return ()
    geometry = client.arena.geometry
    total = format_size(geometry.num_frames * geometry.frame_bytes)
    falls = "so the arrangement is staged instead of pinned, and " if arrangement == "pinned" else ""
    return (
        f"{format_size(lock.num_bytes)} of {total} of host memory could be page-locked ({lock.reason}): "
        f"{falls}the other frames go through a ring of page-locked memory, which takes a core's time",
    )
