"""The memory plan: how many slots, transit slots and frames a run gets, and why.

Pure arithmetic over sizes; it asks no machine and starts nothing, so the supervisor and an
embedding client plan alike.
"""

from dataclasses import dataclass

from protocol.errors import MemoryBudgetError
from protocol.manifest import Manifest
from protocol.units import format_size

#: Slots for experts that pass without admission: one computes while two reader threads fill the others.
NUM_TRANSIT = 3
#: The fewest frames behind a link: one is copied while another is read.
MIN_LINKED_FRAMES = 2

#: The part of free device memory that slots take when nothing is said: the rest is for the KV cache.
VRAM_SHARE = (7, 8)

CUDA_ARRANGEMENTS = ("staged", "pinned")
ARRANGEMENTS = ("direct", "emulated", *CUDA_ARRANGEMENTS)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user said, and what there is. Sizes in bytes; None: not said.

    `arrangement` is settled. `free_bytes` is the memory that can be taken now. `free_frames` is set
    when the arena is there already: the frames of a running loader that no other client has
    reserved. `free_vram` is what can be taken of the device, for staged and pinned.
    """

    arrangement: str
    ram: int | None
    slots: int | None
    free_bytes: int
    free_frames: int | None = None
    vram: int | None = None
    free_vram: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """The plan. `num_frames` is the size of the arena, or of our share in one that is there: our quota.

    In direct, slots and transit slots are frames. `reason` says where `num_slots` comes from;
    `notices` are sentences for the user.
    """

    num_slots: int
    num_transit: int
    num_frames: int
    reason: str
    notices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Room:
    """How many experts fit somewhere, the words for it, and what to do when they are too few."""

    num_experts: int
    words: str
    advice: str


def plan_budget(manifest: Manifest, asked: Asked) -> Budget:
    """How many slots and frames a run over `manifest`'s store gets.

    Raises ValueError for fewer slots than top-k, MemoryBudgetError when memory asked for is not
    there or does not hold the smallest legal configuration.
    """
    _check(manifest, asked)
    match asked.arrangement:
        case "direct":
            return _plan_direct(manifest, asked)
        case "emulated":
            return _plan_emulated(manifest, asked)
        case _:
            return _plan_device(manifest, asked)


def plan_frames(manifest: Manifest, asked: Asked) -> int:
    """How many frames staged or pinned get, whatever the device holds. Raises MemoryBudgetError."""
    if asked.arrangement == "pinned":
        return manifest.num_keys
    room = _room_for_frames(manifest, asked, share=2)
    if room.num_experts < min(MIN_LINKED_FRAMES, manifest.num_keys):
        raise MemoryBudgetError(f"{room.words}, at least {MIN_LINKED_FRAMES} are needed: {room.advice}")
    return min(room.num_experts, manifest.num_keys)


def _check(manifest: Manifest, asked: Asked) -> None:
    if asked.slots is not None and asked.slots < manifest.top_k:
        raise ValueError(
            f"--slots is {asked.slots}, but a token of this model uses {manifest.top_k} experts at once: "
            f"at least {manifest.top_k} slots are needed"
        )
    if asked.ram is not None and asked.ram > asked.free_bytes:
        raise MemoryBudgetError(
            f"{format_size(asked.ram)} of RAM asked, {format_size(asked.free_bytes)} free: "
            f"pass a smaller --ram"
        )


def _plan_direct(manifest: Manifest, asked: Asked) -> Budget:
    """Slots are leased frames: what holds the frames bounds the slots."""
    room = _room_for_frames(manifest, asked, share=2)
    slots, transit = _fit(manifest, asked, room)
    frames = slots + transit
    if asked.slots is None:
        return Budget(slots, transit, frames, _reason(manifest, slots, room), ())
    notices = _slots_notices(manifest, asked.slots, slots)
    if slots < min(asked.slots, manifest.num_keys):
        if asked.ram is None and asked.free_frames is None:
            raise MemoryBudgetError(f"--slots is {asked.slots}, but {room.words}: pass fewer --slots")
        notices += (f"{room.words}, fewer than --slots {asked.slots} take: {slots} slots",)
        return Budget(slots, transit, frames, room.words, notices)
    if asked.ram is not None and room.num_experts > frames:
        notices += (f"--slots {asked.slots} is less than {room.words}: {slots} slots",)
    return Budget(slots, transit, frames, f"--slots {asked.slots}", notices)


def _plan_emulated(manifest: Manifest, asked: Asked) -> Budget:
    """Slots are a pool of their own behind the link; frames are a host cache in front of it."""
    stride = manifest.layout.stride
    pool = _share_of_memory(manifest, asked, share=1 if asked.slots else 4)
    slots, transit = _fit(manifest, asked, pool)
    room = _room_for_frames(manifest, asked, share=4)
    frames = min(room.num_experts, manifest.num_keys)
    if frames < min(MIN_LINKED_FRAMES, manifest.num_keys):
        raise MemoryBudgetError(f"{room.words}, at least {MIN_LINKED_FRAMES} are needed: {room.advice}")
    taken = slots + transit + frames
    if asked.free_frames is not None:
        frames = min(frames, slots + transit)
        taken = slots + transit
    if taken * stride > asked.free_bytes:
        raise MemoryBudgetError(
            f"{slots} slots and {frames} frames take {format_size(taken * stride)}, "
            f"{format_size(asked.free_bytes)} are free: pass a smaller --ram or fewer --slots"
        )
    if asked.slots is None:
        return Budget(slots, transit, frames, _reason(manifest, slots, pool), ())
    notices = _slots_notices(manifest, asked.slots, slots)
    return Budget(slots, transit, frames, f"--slots {asked.slots}", notices)


def _plan_device(manifest: Manifest, asked: Asked) -> Budget:
    """Slots are device memory; frames are a host cache, or hold every expert."""
    frames = plan_frames(manifest, asked)
    room = _room_on_device(manifest, asked)
    slots, transit = _fit(manifest, asked, room)
    if asked.slots is not None and slots < min(asked.slots, manifest.num_keys):
        raise MemoryBudgetError(f"--slots is {asked.slots}, but {room.words}: pass --slots {slots} or fewer")
    if asked.free_frames is not None and asked.arrangement == "staged":
        frames = min(frames, max(slots + transit, MIN_LINKED_FRAMES))
    if asked.slots is None:
        return Budget(slots, transit, frames, _reason(manifest, slots, room), ())
    return Budget(
        slots, transit, frames, f"--slots {asked.slots}", _slots_notices(manifest, asked.slots, slots)
    )


def _room_on_device(manifest: Manifest, asked: Asked) -> _Room:
    """Where slots go: --vram, all of the device's free memory for --slots, or most of it."""
    stride = manifest.layout.stride
    if asked.vram is not None:
        if asked.vram > asked.free_vram:
            free = format_size(asked.free_vram)
            raise MemoryBudgetError(
                f"--vram is {format_size(asked.vram)}, {free} are free on the device, "
                f"enough for {asked.free_vram // stride} slots: pass a smaller --vram"
            )
        fit = asked.vram // stride
        return _Room(fit, f"--vram {format_size(asked.vram)} holds {fit} experts", "pass a larger --vram")
    usable, part = asked.free_vram, ""
    if asked.slots is None:
        usable, part = usable * VRAM_SHARE[0] // VRAM_SHARE[1], "seven eighths of "
    fit = usable // stride
    words = f"{part}the {format_size(asked.free_vram)} of free device memory holds {fit} experts"
    return _Room(fit, words, "free some device memory, or use a store of fewer bits")


def _fit(manifest: Manifest, asked: Asked, room: _Room) -> tuple[int, int]:
    """(slots, transit) within `room`: transit shrinks to one before --slots do.

    Raises MemoryBudgetError when the smallest legal configuration does not fit.
    """
    most = manifest.num_keys
    if asked.slots is not None:
        slots = min(asked.slots, most)
    elif room.num_experts >= most:
        slots = most
    else:
        slots = max(room.num_experts - NUM_TRANSIT, manifest.top_k)
    if room.num_experts < slots + min(_most_transit(manifest, slots), 1):
        slots = room.num_experts - 1
    if slots < manifest.top_k:
        least = manifest.top_k + min(_most_transit(manifest, manifest.top_k), 1)
        raise MemoryBudgetError(
            f"{room.words}, at least {least} are needed ({format_size(least * manifest.layout.stride)}): "
            f"{room.advice}"
        )
    return slots, min(_most_transit(manifest, slots), room.num_experts - slots)


def _most_transit(manifest: Manifest, slots: int) -> int:
    """How many transit slots are of use beside `slots`: none when every expert has a slot."""
    return min(NUM_TRANSIT, manifest.num_keys - slots)


def _room_for_frames(manifest: Manifest, asked: Asked, share: int) -> _Room:
    """Where frames go: a running loader's arena, --ram, or `1 / share` of the free memory."""
    if asked.free_frames is not None:
        return _Room(
            asked.free_frames,
            f"the loader has room for {asked.free_frames} experts",
            "start it with a larger --ram, or let another client go",
        )
    if asked.ram is not None:
        fit = asked.ram // manifest.layout.stride
        words = f"--ram {format_size(asked.ram)} holds {fit} experts"
        return _Room(fit, words, "pass a larger --ram")
    return _share_of_memory(manifest, asked, 1 if asked.slots and asked.arrangement == "direct" else share)


def _share_of_memory(manifest: Manifest, asked: Asked, share: int) -> _Room:
    fit = asked.free_bytes // share // manifest.layout.stride
    part = {1: "", 2: "half of ", 4: "a quarter of "}[share]
    words = f"{part}the {format_size(asked.free_bytes)} of free memory holds {fit} experts"
    return _Room(fit, words, "free some memory, or use a store of fewer bits")


def _reason(manifest: Manifest, slots: int, room: _Room) -> str:
    if slots == manifest.num_keys:
        return f"room for all {slots} experts"
    return room.words


def _slots_notices(manifest: Manifest, asked_slots: int, slots: int) -> tuple[str, ...]:
    if asked_slots <= manifest.num_keys:
        return ()
    return (f"--slots {asked_slots} is more than the model's {manifest.num_keys} experts: {slots} slots",)
