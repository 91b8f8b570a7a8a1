"""Assembly: every part of an offloaded model, opened in order and put together.

The composition root of compute: it alone knows store, skeleton, loader, policy, transport and
stage at once. Whatever is opened is noted on an ExitStack, so that it closes in reverse.
"""

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compute import experts, policies, skeleton
from compute.arrangement import HostMemory, choose_arrangement, choose_device
from compute.beside.static_generation import prepare
from compute.beside.token_graph import TokenGraphs
from compute.budget import Asked, Budget, plan_budget
from compute.cache_folder import check_quantization, find_store
from compute.devices import HERE, Devices
from compute.discovery import MoeLayer, discover
from compute.opening import Way, open_way
from compute.passes import Passes
from compute.pin_limit import pin_limit
from compute.recording import Recording
from compute.reporter import Reporter
from compute.settings import Settings
from compute.stage import Stage
from compute.stage_opening import OpenedStage, open_stage
from compute.transports.driver import Driver
from compute.vacancy import Vacancy, look_in
from protocol.arena import available_memory_bytes
from protocol.errors import StoreError
from protocol.manifest import Manifest

_log = logging.getLogger("sidestage")


@dataclass(frozen=True, slots=True)
class Parts:
    """An offloaded model in pieces."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    store: Path
    manifest: Manifest
    moe_layers: list[MoeLayer]
    stage: Stage
    stage_number: int
    graphs: TokenGraphs | None
    passes: Passes
    budget: Budget
    arrangement_reason: str
    notices: tuple[str, ...]


def assemble(
    model: str | None,
    settings: Settings,
    timeout_s: float,
    recording: Recording,
    opened: ExitStack,
    devices: Devices = HERE,
) -> Parts:
    """Open everything that an offloaded `model` needs; `opened` closes it and holds no reference to it."""
    device = choose_device(
        settings.device, settings.arrangement, devices.has_cuda(), settings.vram, settings.stage
    )
    policies.find(settings.policy)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    store, manifest, vacancy = _find(model, settings, timeout_s)
    driver = devices.open() if device == "cuda" else None
    place = str(driver.device) if driver else "cpu"
    built, tokenizer = skeleton.build(store, manifest, settings.dtype, place)
    layers = _moe_layers(built, store, manifest)
    asked, reason = _asked(manifest, settings, device, driver, vacancy)
    budget = plan_budget(manifest, asked)
    way = open_way(store, manifest, settings, asked.arrangement, budget, driver, timeout_s, recording, opened)
    if way.transport.arrangement != asked.arrangement:
        reason = way.notices[0]
    opened_stage = open_stage(
        manifest, layers, settings, way, driver, devices, recording.timeline, timeout_s, opened
    )
    stage = opened_stage.stage
    about = f"{way.transport.arrangement}, {settings.policy}, lookahead {settings.lookahead}"
    stage.listeners.append(Reporter(stage, way.client, about, manifest.num_keys))
    for layer in layers:
        experts.bind(layer.experts, stage, layer.index)
        opened.callback(experts.unbind, layer.experts)
    graphs = _record_tokens(built, opened_stage, driver, devices, opened)
    passes = Passes(stage.begin_pass, stage.undivided)
    passes.guard(built)
    notices = _tell(way, reason, budget, opened_stage)
    number = opened_stage.number
    return Parts(
        built, tokenizer, store, manifest, layers, stage, number, graphs, passes, budget, reason, notices
    )


def _record_tokens(
    model: PreTrainedModel,
    opened_stage: OpenedStage,
    driver: Driver | None,
    devices: Devices,
    opened: ExitStack,
) -> TokenGraphs | None:
    """In stage 3 a token's forward becomes a graph; what comes to `model.forward` later is outside of it."""
    stage = opened_stage.stage
    if opened_stage.number < 3 or driver is None or stage.beside is None:
        return None
    graphs = TokenGraphs(devices.recorder(driver.device), stage.beside, stage.undivided)
    graphs.take_over(model)
    opened.callback(graphs.close)
    opened.callback(prepare(model))
    return graphs


def _asked(
    manifest: Manifest, settings: Settings, device: str, driver: Driver | None, vacancy: Vacancy | None
) -> tuple[Asked, str]:
    """What the user said and what there is, the arrangement settled; and why it is that one."""
    free_bytes = available_memory_bytes()
    free_frames = vacancy.num_frames if vacancy else None
    host = HostMemory(settings.ram, free_bytes, free_frames, pin_limit())
    arrangement, reason = choose_arrangement(settings.arrangement, device, manifest, host)
    asked = Asked(
        arrangement=arrangement,
        ram=settings.ram,
        slots=settings.slots,
        free_bytes=free_bytes,
        free_frames=free_frames,
        vram=settings.vram,
        free_vram=driver.memory()[0] if driver else 0,
    )
    return asked, reason


def _find(model: str | None, settings: Settings, timeout_s: float) -> tuple[Path, Manifest, Vacancy | None]:
    """The store, from the model's name or from the loader that serves it."""
    if model is None:
        if settings.connect is None:
            raise ValueError("no model is named: name a checkpoint or a store, or connect to a loader")
        vacancy = look_in(settings.connect, "", timeout_s)
        store = Path(vacancy.store_path)
        manifest = Manifest.read(store)
        check_quantization(store, manifest, settings.quantization)
        return store, manifest, vacancy
    store = find_store(model, settings.quantization)
    manifest = Manifest.read(store)
    if settings.connect is not None:
        return store, manifest, look_in(settings.connect, manifest.fingerprint, timeout_s)
    manifest.check_shards(store)
    return store, manifest, None


def _moe_layers(model: PreTrainedModel, store: Path, manifest: Manifest) -> list[MoeLayer]:
    """The model's MoE layers, checked to be the store's: keys count layers in forward order."""
    layers = discover(model)
    if [layer.name for layer in layers] != list(manifest.layers):
        raise StoreError(
            f"{store} holds {manifest.num_layers} MoE layers ({manifest.layers[0]}, ...), the model runs "
            f"{len(layers)} ({layers[0].name}, ...): convert it again with this version of transformers"
        )
    return layers


def _tell(way: Way, reason: str, budget: Budget, opened: OpenedStage) -> tuple[str, ...]:
    """Log what was chosen and why; return, and log, what the user should know."""
    arrangement = way.transport.arrangement
    _log.info("arrangement %s: %s; %d slots: %s", arrangement, reason, budget.num_slots, budget.reason)
    notices = (*budget.notices, *way.notices, *opened.notices, *opened.stage.notices)
    for notice in notices:
        _log.warning("%s", notice)
    return notices
