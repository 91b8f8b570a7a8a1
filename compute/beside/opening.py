"""What stages 2 and 3 need, opened: whether they are possible here, shared words, table, slots on loan."""

import time
from contextlib import ExitStack
from dataclasses import dataclass

from compute.beside.beside import Beside
from compute.beside.device_path import DevicePath
from compute.beside.follower import Follower
from compute.beside.lending import LendingResidency
from compute.beside.mailbox import Mailbox
from compute.beside.open_slots import OpenSlots
from compute.beside.resolver import Resolver
from compute.beside.table import DeviceSlotTable
from compute.beside.words import MAX_EXPERTS, DeviceWords, Extent, SharedWords
from compute.kernels.base import AddressedKernel, ExpertKernel
from compute.kernels.triton_plan import MAX_DECODE_TOKENS
from compute.look_ahead import LookAhead
from compute.opening import Way
from compute.patience import TIMEOUT_HINT
from compute.policies.base import EvictionPolicy
from compute.stage import Stage
from compute.transports.driver import Driver
from compute.transports.linked import LinkedTransport
from protocol.manifest import Manifest
from protocol.timeline import Timeline

#: Passes whose steps the mailbox holds: as far as the device may run ahead of the policy.
_PASSES_AHEAD = 4
#: Open slots are for so many tokens that find none of their experts in a step (the next ones come a step
#: later), and one in so many slots at most.
_TOKENS_ON_OFFER = 2
_MOST_ON_OFFER = 4


@dataclass(frozen=True, slots=True)
class Site:
    """What stages 2 and 3 are to be built on."""

    manifest: Manifest
    way: Way
    driver: Driver | None
    kernel: ExpertKernel
    policy: EvictionPolicy
    timeline: Timeline | None
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Ground:
    """What there is before the stage: words that host and device share, and who is in which slot."""

    site: Site
    driver: Driver
    words: DeviceWords
    table: DeviceSlotTable
    residency: LendingResidency


def obstacle(site: Site) -> str:
    """Why the device cannot decode by itself here, "" when it can."""
    driver, way = site.driver, site.way
    if driver is None or way.frame_addresses is None:
        return (
            f"experts are read out of page-locked frames, and the arrangement is {way.transport.arrangement}"
        )
    if not driver.reads_in_place():
        return f"{driver.name} does not read page-locked memory by the host's addresses"
    if not isinstance(site.kernel, AddressedKernel):
        return f"the {site.kernel.name} kernel cannot take experts by addresses that the device has found"
    if site.policy.needs_probs:
        return "the policy hears the router's whole distribution, which stays on the device"
    if site.timeline is not None:
        return "a timeline shows every layer-step, so the host takes part in each"
    if site.manifest.num_experts >= MAX_EXPERTS // 2:
        return f"{site.manifest.num_experts} experts a layer are more than the mailbox can name"
    return ""


def open_ground(site: Site, num_named: int, opened: ExitStack) -> Ground:
    """Where no `obstacle` is. `num_named`: experts predicted in a step for a token. Raises DriverError."""
    manifest, driver = site.manifest, site.driver
    transport, frames = site.way.transport, site.way.frame_addresses
    assert isinstance(transport, LinkedTransport) and driver is not None and frames is not None
    extent = Extent(
        num_keys=manifest.num_keys,
        num_open=max(_num_offered(manifest, transport.num_slots), 1),
        num_cells=_PASSES_AHEAD * manifest.num_layers,
        width=1 + MAX_DECODE_TOKENS * (manifest.top_k + num_named),
    )
    shared = SharedWords(driver, extent)
    opened.callback(_close_words, driver, shared, site.timeout_s)
    table = DeviceSlotTable(shared.words, frames, transport.pool)
    residency = LendingResidency(transport.num_slots, manifest.top_k, site.policy, table=table)
    return Ground(site, driver, shared.words, table, residency)


def open_beside(ground: Ground, stage: Stage, look_ahead: LookAhead | None, resolver: Resolver) -> Beside:
    """What runs the small layer-steps of `stage`, which has the ground's residency."""
    manifest = ground.site.manifest
    return Beside(
        _open_path(ground, look_ahead, resolver),
        _open_follower(ground, stage, look_ahead),
        stage.supply,
        num_layers=manifest.num_layers,
        top_k=manifest.top_k,
        watchers=stage.observers,
        settle=ground.driver.mark_uses,
    )


def _open_path(ground: Ground, look_ahead: LookAhead | None, resolver: Resolver) -> DevicePath:
    manifest, kernel = ground.site.manifest, ground.site.kernel
    assert isinstance(kernel, AddressedKernel)
    is_whole = ground.residency.num_slots == manifest.num_keys
    return DevicePath(
        ground.words,
        resolver,
        kernel,
        look_ahead.gate if look_ahead and not is_whole else None,
        num_experts=manifest.num_experts,
        blob_bytes=manifest.layout.stride,
        device=ground.driver.device,
    )


def _open_follower(ground: Ground, stage: Stage, look_ahead: LookAhead | None) -> Follower:
    manifest, residency = ground.site.manifest, ground.residency
    num_spare = manifest.top_k * look_ahead.lookahead if look_ahead else 0
    open_slots = OpenSlots(
        ground.words,
        ground.table,
        residency,
        _num_offered(manifest, residency.num_slots),
        min(num_spare, residency.num_slots // _MOST_ON_OFFER),
        manifest.num_keys,
    )
    return Follower(
        residency=residency,
        table=ground.table,
        mailbox=Mailbox(ground.words),
        open_slots=open_slots,
        supply=stage.supply,
        look_ahead=look_ahead,
        begin_pass=stage.note_pass,
        told=stage.tell,
        num_experts=manifest.num_experts,
        timeout_s=ground.site.timeout_s,
    )


def _num_offered(manifest: Manifest, num_slots: int) -> int:
    """Slots that wait for the experts which the device misses; none where every expert has its own."""
    if num_slots == manifest.num_keys:
        return 0
    return min(_TOKENS_ON_OFFER * manifest.top_k, max(num_slots // _MOST_ON_OFFER, 1))


def _close_words(driver: Driver, shared: SharedWords, timeout_s: float) -> None:
    """Once the device has finished what it was given."""
    uses = driver.mark_uses()
    until_s = time.monotonic() + timeout_s
    while not uses.is_done():
        if time.monotonic() > until_s:
            raise RuntimeError(
                f"the device has not finished within {timeout_s:g} s, its shared words stay {TIMEOUT_HINT}"
            )
        time.sleep(0.0001)
    shared.close()
