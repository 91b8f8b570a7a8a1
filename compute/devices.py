"""What there is to compute on beside the CPU, and what only exists there: opened when it is needed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from compute import kernels
from compute.beside.resolver import Resolver
from compute.beside.token_recorder import CudaRecorder, Recorder
from compute.kernels.base import ExpertKernel
from compute.transports.cuda_driver import CudaDriver, has_cuda
from compute.transports.driver import Driver
from protocol.blob import BlobLayout


def _choose_kernel(layout: BlobLayout, device: str) -> tuple[ExpertKernel, str]:
    return kernels.choose(layout, device=device)


def _triton_resolver() -> Resolver:
    from compute.kernels.triton_resolve import TritonResolver

    return TritonResolver()


@dataclass(frozen=True, slots=True)
class Devices:
    """`choose_kernel(layout, device)`: a kernel, and why it is that one. The rest is for stages 2 and 3."""

    has_cuda: Callable[[], bool] = has_cuda
    open: Callable[[], Driver] = CudaDriver
    choose_kernel: Callable[[BlobLayout, str], tuple[ExpertKernel, str]] = _choose_kernel
    resolver: Callable[[], Resolver] = _triton_resolver
    recorder: Callable[[torch.device], Recorder] = CudaRecorder


HERE = Devices()
