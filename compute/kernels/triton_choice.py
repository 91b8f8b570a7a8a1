"""Whether the Triton kernel can run here: a look at the package, its version and the device.

The only way in for the rest of the house: triton is imported behind it, on CUDA's way alone.
"""

from __future__ import annotations

import subprocess
from importlib import metadata

import torch

from compute.kernels.base import ExpertKernel
from protocol.blob import BlobLayout

MIN_VERSION = (3, 6)
#: Tensor cores that know bfloat16.
MIN_CAPABILITY = (8, 0)


def open_kernel(layout: BlobLayout, device: str) -> ExpertKernel | str:
    """The kernel for experts in the memory of a CUDA `device`, or why there is none."""
    reason = _missing() or _too_old(device) or _cannot_launch()
    if reason:
        return reason
    from compute.kernels.triton_kernel import TritonKernel

    try:
        return TritonKernel(layout)
    except ValueError as error:
        return str(error)


def _missing() -> str:
    """Why triton cannot be used; "" when it can."""
    needed = ".".join(map(str, MIN_VERSION))
    try:
        found = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return f'triton is not installed: install "sidestage[gpu]" (triton {needed} or newer)'
    major, minor = found.split(".")[:2]
    if (int(major), int(minor)) < MIN_VERSION:
        return f"triton {found} is installed, {needed} or newer is needed: upgrade it"
    return ""


def _too_old(device: str) -> str:
    capability = torch.cuda.get_device_capability(device)
    if capability >= MIN_CAPABILITY:
        return ""
    needed = ".".join(map(str, MIN_CAPABILITY))
    return f"the GPU has compute capability {capability[0]}.{capability[1]}, the triton kernel needs {needed}"


def _cannot_launch() -> str:
    """Why triton cannot launch a kernel on this machine: it compiles its way into the driver, in C."""
    from triton.runtime import driver

    try:
        driver.active.utils  # noqa: B018 - made when it is first asked for
    except (RuntimeError, AssertionError, ImportError, OSError, subprocess.CalledProcessError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"triton cannot launch kernels ({first_line}): it needs a C compiler and Python's headers"
    return ""
