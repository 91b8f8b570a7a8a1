"""Which device computes, and which arrangement brings experts to it: asked for, or chosen with a reason.

Pure arithmetic over what a machine has; asks no machine and starts nothing.
"""

from dataclasses import dataclass

from compute.budget import ARRANGEMENTS, CUDA_ARRANGEMENTS
from protocol.errors import MemoryBudgetError
from protocol.manifest import Manifest
from protocol.units import format_size

#: The part of free memory that `auto` gives to the frames of every expert: numerator, denominator.
PINNED_SHARE = (3, 4)


@dataclass(frozen=True, slots=True)
class HostMemory:
    """What host memory allows, in bytes. None: `ram` not said, no frames there yet, no limit known.

    `free_frames`: of a loader that runs already. `pin_bytes`: what the system page-locks at most.
    """

    ram: int | None
    free_bytes: int
    free_frames: int | None = None
    pin_bytes: int | None = None


def choose_device(
    device: str, arrangement: str, has_cuda: bool, vram: int | None = None, stage: int = 1
) -> str:
    """ "cpu" or "cuda", by --device and --arrangement. Raises ValueError for what cannot be had."""
    if arrangement not in ("auto", *ARRANGEMENTS):
        raise ValueError(f"--arrangement is {arrangement!r}; allowed: auto, {', '.join(ARRANGEMENTS)}")
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device is {device!r}; allowed: auto, cpu, cuda")
    if arrangement in CUDA_ARRANGEMENTS and (device == "cpu" or not has_cuda):
        lack = "--device is cpu" if has_cuda else "there is no CUDA device here"
        raise ValueError(
            f"--arrangement {arrangement} moves experts to a CUDA device, and {lack}: use direct or emulated"
        )
    if device == "cuda" and not has_cuda:
        raise ValueError("--device is 'cuda', and there is no CUDA device here: use auto or cpu")
    if device == "cuda" and arrangement in ("direct", "emulated"):
        raise ValueError(f"--arrangement {arrangement} computes on the CPU, --device is cuda: leave one out")
    chosen = "cuda" if has_cuda and device != "cpu" and arrangement not in ("direct", "emulated") else "cpu"
    if vram is not None and chosen == "cpu":
        raise ValueError(
            "--vram belongs to the arrangements with a CUDA device (staged, pinned), and this run computes "
            "on the CPU: pass --slots instead"
        )
    if stage > 1 and chosen == "cpu":
        raise ValueError(
            f"--stage {stage} lets a CUDA device decode by itself, and this run computes on the CPU: "
            "leave it out"
        )
    return chosen


def choose_arrangement(asked: str, device: str, manifest: Manifest, host: HostMemory) -> tuple[str, str]:
    """(arrangement, reason) on the `device` that `choose_device` gave, for the store of `manifest`.

    Raises MemoryBudgetError for --arrangement pinned where it does not fit.
    """
    if device == "cpu":
        if asked == "auto":
            return "direct", "the device is the CPU: experts are read in place"
        return asked, "asked for"
    obstacle = _obstacle(manifest, host)
    if asked == "pinned" and obstacle:
        raise MemoryBudgetError(
            f"--arrangement pinned needs a frame for each of the {manifest.num_keys} experts "
            f"({format_size(manifest.expert_bytes_total)}), and {obstacle}: use staged"
        )
    if asked != "auto":
        return asked, "asked for"
    if obstacle:
        return "staged", f"a CUDA device, and {obstacle}"
    return "pinned", f"a CUDA device, and host memory for all {manifest.num_keys} experts"


def _obstacle(manifest: Manifest, host: HostMemory) -> str:
    """Why not every expert can have a page-locked frame, "" when it can."""
    needed = manifest.num_keys * manifest.layout.stride
    if host.free_frames is not None:
        if host.free_frames < manifest.num_keys:
            return f"the loader has room for {host.free_frames} of them"
    elif host.ram is not None:
        if host.ram < needed:
            return f"--ram {format_size(host.ram)} is less"
    elif host.free_bytes * PINNED_SHARE[0] // PINNED_SHARE[1] < needed:
        return f"three quarters of the {format_size(host.free_bytes)} of free memory are less"
    if host.pin_bytes is not None and host.pin_bytes < needed:
        return f"this system page-locks {format_size(host.pin_bytes)} at most"
    return ""
