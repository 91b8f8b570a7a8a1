"""From a plan to a transport that runs: the loader, its client, and the way into the slots.

What is opened is noted on an ExitStack, so that it closes in reverse. Knows no model.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from compute.arrays import IntArray
from compute.budget import CUDA_ARRANGEMENTS, Budget
from compute.client import LoaderClient
from compute.loader_process import start_loader
from compute.pin_limit import pin_limit
from compute.recording import Recording
from compute.settings import Settings
from compute.transports.base import Transport
from compute.transports.cuda import open_cuda_transport
from compute.transports.direct import DirectTransport
from compute.transports.driver import Driver
from compute.transports.emulated import EmulatedTransport
from protocol.manifest import Manifest

#: A fill of every frame reads as fast as the disk allows.
_NUM_FILLING_THREADS = 4


@dataclass(frozen=True, slots=True)
class Way:
    """A running transport and its client, and sentences about what could not be had.

    `frame_addresses`: where a device reads each expert by itself, by key; None where it cannot.
    """

    transport: Transport
    client: LoaderClient
    notices: tuple[str, ...] = ()
    frame_addresses: IntArray | None = None


def open_way(
    store: Path,
    manifest: Manifest,
    settings: Settings,
    arrangement: str,
    budget: Budget,
    driver: Driver | None,
    timeout_s: float,
    recording: Recording,
    opened: ExitStack,
) -> Way:
    """Raises LoaderLostError, RefusedError, MemoryBudgetError, StoreError with a sentence."""
    client = _open_client(store, manifest, settings, arrangement, budget, timeout_s, recording, opened)
    way = _open_transport(manifest, settings, arrangement, budget, driver, client, recording)
    opened.callback(way.transport.close)
    return way


def _open_client(
    store: Path,
    manifest: Manifest,
    settings: Settings,
    arrangement: str,
    budget: Budget,
    timeout_s: float,
    recording: Recording,
    opened: ExitStack,
) -> LoaderClient:
    """A client of the loader at `--connect`, or of one that is started here and restarted if it dies."""
    revive: Callable[[], None] | None = None
    endpoint = settings.connect
    if endpoint is None:
        loader = opened.enter_context(
            start_loader(
                store,
                num_frames=budget.num_frames,
                threads=_NUM_FILLING_THREADS if arrangement == "pinned" else 2,
                timeline=recording.loader_file,
                direct_io=settings.direct_io,
                timeout_s=timeout_s,
            )
        )
        endpoint, revive = loader.endpoint, loader.restart
    return opened.enter_context(
        LoaderClient(
            endpoint,
            quota=budget.num_frames,
            store=manifest.fingerprint,
            timeout_s=timeout_s,
            revive=revive,
            timeline=recording.timeline,
            maps_writable=arrangement in CUDA_ARRANGEMENTS,
        )
    )


def _open_transport(
    manifest: Manifest,
    settings: Settings,
    arrangement: str,
    budget: Budget,
    driver: Driver | None,
    client: LoaderClient,
    recording: Recording,
) -> Way:
    slots, transit = budget.num_slots, budget.num_transit
    if arrangement == "direct":
        return Way(DirectTransport(client, num_slots=slots, num_transit=transit), client)
    if arrangement == "emulated":
        emulated = EmulatedTransport(
            client, num_slots=slots, num_transit=transit, rate=settings.link, timeline=recording.timeline
        )
        return Way(emulated, client)
    assert driver is not None, f"{arrangement} needs a device"
    cuda = open_cuda_transport(
        driver,
        client,
        arrangement=arrangement,
        num_keys=manifest.num_keys,
        budget=budget,
        pin_bytes=pin_limit(),
        timeline=recording.timeline,
    )
    return Way(cuda.transport, client, cuda.notices, cuda.frame_addresses)
