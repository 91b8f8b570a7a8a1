"""Kernels: a blob's bytes and the rows of its expert become the expert's output.

`choose` picks one and says why. Importing this package imports no torch.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compute.kernels.base import ExpertKernel
    from protocol.blob import BlobLayout

#: "cpu" multiplies activations rounded to 16 bits, "cpu-fp32" as they are; see compute.kernels.cpu.
#: "triton" is for CUDA.
NAMES = ("auto", "reference", "cpu", "cpu-fp32", "triton")

_log = logging.getLogger("sidestage")


def choose(layout: BlobLayout, name: str = "auto", device: str = "cpu") -> tuple[ExpertKernel, str]:
    """The kernel for experts in the memory of `device`, and why it is that one.

    Raises ValueError for an unknown name, or for a kernel that cannot run this layout here.
    """
    from compute.kernels.reference import ReferenceKernel

    if name not in NAMES:
        raise ValueError(f'no kernel is called "{name}"; known are {", ".join(NAMES)}')
    if name == "reference":
        return ReferenceKernel(layout), "asked for"
    if device != "cpu" or name == "triton":
        return _choose_on_device(layout, name, device)
    if name == "auto" and layout.bits == "none":
        return ReferenceKernel(layout), "unquantized experts are multiplied by torch, where they lie"

    from compute.kernels.binding import library
    from compute.kernels.cpu import CpuKernel

    missing = library()
    if name == "auto" and isinstance(missing, str):
        _say_once(
            f"experts are computed by torch alone, several times slower than by the cpu kernel: {missing}"
        )
        return ReferenceKernel(layout), missing
    kernel = CpuKernel(layout, variant="fp32" if name == "cpu-fp32" else "int16")
    return kernel, "asked for" if name != "auto" else "quantized experts in the memory of the CPU"


def _choose_on_device(layout: BlobLayout, name: str, device: str) -> tuple[ExpertKernel, str]:
    """Triton's kernel, or torch's where there is none and nobody asked for it by name."""
    from compute.kernels.reference import ReferenceKernel
    from compute.kernels.triton_choice import open_kernel

    if not device.startswith("cuda") or name not in ("auto", "triton"):
        raise ValueError(f'the "{name}" kernel does not run on {device}: use "auto" or "reference"')
    kernel = open_kernel(layout, device)
    if not isinstance(kernel, str):
        return kernel, "asked for" if name == "triton" else f"experts in the memory of {device}"
    if name == "triton":
        raise ValueError(f"there is no triton kernel here, use the reference kernel: {kernel}")
    _say_once(f"experts are computed by torch alone, one after the other: {kernel}")
    return ReferenceKernel(layout), kernel


@functools.cache
def _say_once(sentence: str) -> None:
    _log.warning(sentence)
