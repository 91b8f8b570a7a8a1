"""A device whose memory and whose computing are the CPU's, for stages 2 and 3 with all else real.

What would be its kernels are operators of torch's, so that a `Tape` records them as a graph would.
"""

import ctypes

import numpy as np
import torch
from support.fake_driver import FakeDriver
from support.host_resolver import HostResolver
from support.token_tape import Tape
from torch import Tensor, nn

from compute.beside.words import DeviceWords
from compute.devices import Devices
from compute.kernels.reference import ReferenceKernel
from protocol.blob import BlobLayout

_RESOLVER = HostResolver()
_RUNS: dict[int, tuple["HostKernel", nn.Module]] = {}


@torch.library.custom_op(
    "sidestage_tests::resolve", mutates_args=("mailbox", "state", "addresses", "sources")
)
def _resolve(
    table: Tensor,
    control: Tensor,
    opened: Tensor,
    mailbox: Tensor,
    state: Tensor,
    layer: int,
    num_experts: int,
    index: Tensor,
    predicted: Tensor | None,
    addresses: Tensor,
    sources: Tensor,
) -> None:
    words = DeviceWords(table, control, opened, mailbox)
    _RESOLVER.resolve(words, state, layer, num_experts, index, predicted, addresses, sources)


@torch.library.custom_op("sidestage_tests::gather", mutates_args=())
def _gather(addresses: Tensor, sources: Tensor, num_bytes: int) -> None:
    _RESOLVER.gather(addresses, sources, num_bytes)


@torch.library.custom_op("sidestage_tests::run_at", mutates_args=("out",))
def _run_at(which: int, addresses: Tensor, hidden: Tensor, weights: Tensor, out: Tensor) -> None:
    kernel, module = _RUNS[which]
    kernel.run_rows(module, addresses, hidden, weights, out)


class OperatorResolver:
    """See `Resolver`."""

    def resolve(
        self,
        words: DeviceWords,
        state: Tensor,
        layer: int,
        num_experts: int,
        index: Tensor,
        predicted: Tensor | None,
        addresses: Tensor,
        sources: Tensor,
    ) -> None:
        shared = (words.table, words.control, words.opened, words.mailbox)
        _resolve(*shared, state, layer, num_experts, index, predicted, addresses, sources)

    def gather(self, addresses: Tensor, sources: Tensor, num_bytes: int) -> None:
        _gather(addresses, sources, num_bytes)


class HostKernel(ReferenceKernel):
    """The reference kernel, told by addresses in the CPU's memory where experts lie."""

    name = "host"

    def __init__(self, layout: BlobLayout) -> None:
        super().__init__(layout)
        self._stride = layout.stride

    def run_at(
        self, module: nn.Module, addresses: Tensor, hidden: Tensor, weights: Tensor, out: Tensor
    ) -> None:
        """See `AddressedKernel`."""
        _RUNS[id(module)] = self, module
        _run_at(id(module), addresses, hidden, weights, out)

    def run_rows(
        self, module: nn.Module, addresses: Tensor, hidden: Tensor, weights: Tensor, out: Tensor
    ) -> None:
        """An expert's rows go through it together, as everywhere else."""
        rows_of: dict[int, list[int]] = {}
        for row, address in enumerate(addresses.tolist()):
            rows_of.setdefault(address, []).append(row)
        for address, rows in rows_of.items():
            if address > 0:
                inputs = hidden[torch.tensor(rows) // weights.shape[1]]
                out[rows] = (
                    self(module, blob_at(address, self._stride), inputs) * weights.reshape(-1, 1)[rows]
                )


def blob_at(address: int, num_bytes: int) -> Tensor:
    """uint8 [num_bytes] of the CPU's memory."""
    memory = (ctypes.c_uint8 * num_bytes).from_address(address)
    return torch.from_numpy(np.frombuffer(memory, np.uint8))


def host_devices(driver: FakeDriver, tape: Tape | None = None) -> Devices:
    """A CUDA device as far as `assemble` can tell."""
    return Devices(
        has_cuda=lambda: True,
        open=lambda: driver,
        choose_kernel=lambda layout, _: (HostKernel(layout), "a test"),
        resolver=OperatorResolver,
        recorder=lambda _: tape or Tape(),
    )
