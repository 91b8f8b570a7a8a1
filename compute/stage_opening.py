"""The stage, put together: policy, residency, kernel, what looks ahead, and who runs beside the device.

What is opened is noted on an ExitStack, so that it closes in reverse.
"""

import logging
from contextlib import ExitStack
from dataclasses import dataclass

from compute import policies, predictors
from compute.beside.opening import Ground, Site, obstacle, open_beside, open_ground
from compute.devices import Devices
from compute.discovery import MoeLayer
from compute.look_ahead import LookAhead, gate_in
from compute.opening import Way
from compute.policies.base import CacheShape, EvictionPolicy
from compute.predictors.base import Predictor, RoutingShape
from compute.prefetch import PrefetchPlanner
from compute.residency import Residency
from compute.router_probs import RouterProbs
from compute.settings import Settings
from compute.stage import Stage
from compute.transports.driver import Driver
from protocol.manifest import Manifest
from protocol.timeline import Timeline

_log = logging.getLogger("sidestage")


@dataclass(frozen=True, slots=True)
class OpenedStage:
    """`number`: 1 where the host takes part in every layer-step, as `--stage` means it."""

    stage: Stage
    number: int
    notices: tuple[str, ...]


def open_stage(
    manifest: Manifest,
    layers: list[MoeLayer],
    settings: Settings,
    way: Way,
    driver: Driver | None,
    devices: Devices,
    timeline: Timeline | None,
    timeout_s: float,
    opened: ExitStack,
) -> OpenedStage:
    """Raises DriverError when a device refuses page-locked memory for stages 2 and 3."""
    num_slots = way.transport.num_slots
    policy = _open_policy(manifest, settings, num_slots)
    kernel, reason = devices.choose_kernel(manifest.layout, str(driver.device) if driver else "cpu")
    _log.info("kernel %s: %s", kernel.name, reason)
    predictor = _open_predictor(manifest, layers, settings)
    site = Site(manifest, way, driver, kernel, policy, timeline, timeout_s)
    ground, notices = _open_ground(site, settings, predictor, opened)
    residency = ground.residency if ground else Residency(num_slots, manifest.top_k, policy)
    look_ahead = None
    if predictor:
        blob_bytes, ahead = manifest.layout.stride, settings.lookahead
        planner = PrefetchPlanner(manifest.num_experts, manifest.top_k, blob_bytes, ahead)
        look_ahead = LookAhead(predictor, planner, residency, manifest)
    stage = Stage(
        manifest=manifest,
        residency=residency,
        transport=way.transport,
        kernel=kernel,
        look_ahead=look_ahead,
        timeline=timeline,
        router_probs=RouterProbs(layers) if policy.needs_probs else None,
        policy_name=settings.policy,
    )
    opened.callback(stage.close)
    if ground:
        stage.beside = open_beside(ground, stage, look_ahead, devices.resolver())
    return OpenedStage(stage, settings.stage if ground else 1, notices)


def _open_policy(manifest: Manifest, settings: Settings, num_slots: int) -> EvictionPolicy:
    """What was asked for; but where every expert has a slot nobody leaves: of ours the cheapest will do."""
    shape = CacheShape(manifest.num_layers, manifest.num_experts, manifest.top_k, num_slots)
    asked = policies.named(settings.policy, shape)
    is_ours = settings.policy.partition("+")[0] in policies.KNOWN
    return policies.named("lru", shape) if is_ours and num_slots == manifest.num_keys else asked


def _open_ground(
    site: Site, settings: Settings, predictor: Predictor | None, opened: ExitStack
) -> tuple[Ground | None, tuple[str, ...]]:
    """What stages 2 and 3 stand on, if asked for and possible; and why not."""
    if settings.stage == 1:
        return None, ()
    if reason := obstacle(site):
        return None, (f"--stage {settings.stage} is not possible here, stage 1 runs instead: {reason}",)
    gate = gate_in(predictor)
    manifest = site.manifest
    num_named = gate.num_named(manifest.top_k, manifest.num_experts) * settings.lookahead if gate else 0
    return open_ground(site, num_named, opened), ()


def _open_predictor(manifest: Manifest, layers: list[MoeLayer], settings: Settings) -> Predictor | None:
    """What looks ahead, with its ears at the model; None where nothing is to be predicted."""
    if not settings.lookahead:
        return None
    shape = RoutingShape(manifest.num_layers, manifest.num_experts, manifest.top_k)
    return predictors.named(settings.predictor, shape, settings.lookahead, moe_layers=layers)
