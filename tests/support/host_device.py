"""A device whose memory and whose computing are the CPU's, for stages 2 and 3 with all else real."""

import ctypes

import numpy as np
import torch
from support.fake_driver import FakeDriver
from support.host_resolver import HostResolver
from torch import Tensor, nn

from compute.devices import Devices
from compute.kernels.reference import ReferenceKernel
from protocol.blob import BlobLayout


class HostKernel(ReferenceKernel):
    """The reference kernel, told by addresses in the CPU's memory where experts lie."""

    name = "host"

    def __init__(self, layout: BlobLayout) -> None:
        super().__init__(layout)
        self._stride = layout.stride

    def run_at(
        self, module: nn.Module, addresses: Tensor, hidden: Tensor, weights: Tensor, out: Tensor
    ) -> None:
        """See `AddressedKernel`. An expert's rows go through it together, as everywhere else."""
        rows_of: dict[int, list[int]] = {}
        for row, address in enumerate(addresses.tolist()):
            rows_of.setdefault(address, []).append(row)
        for address, rows in rows_of.items():
            if address > 0:
                made = self(
                    module, blob_at(address, self._stride), hidden[torch.tensor(rows) // weights.shape[1]]
                )
                out[rows] = made * weights.reshape(-1, 1)[rows]


def blob_at(address: int, num_bytes: int) -> Tensor:
    """uint8 [num_bytes] of the CPU's memory."""
    memory = (ctypes.c_uint8 * num_bytes).from_address(address)
    return torch.from_numpy(np.frombuffer(memory, np.uint8))


def host_devices(driver: FakeDriver) -> Devices:
    """A CUDA device as far as `assemble` can tell."""
    return Devices(
        has_cuda=lambda: True,
        open=lambda: driver,
        choose_kernel=lambda layout, _: (HostKernel(layout), "a test"),
        resolver=HostResolver,
    )
