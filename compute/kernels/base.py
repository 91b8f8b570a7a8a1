"""What a kernel is: a blob's bytes and the rows meant for its expert become the expert's output.

A kernel knows a blob layout and the flags of the experts module; never slots, policies or routing.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

#: Whole numbers for a kernel: a list, or an array.
Integers = Sequence[int] | npt.NDArray[np.int64]


class ExpertKernel(Protocol):
    """Deterministic: the same rows and bytes give the same bits, wherever the blob lies."""

    #: Names the kernel in reports and figures.
    name: str

    def __call__(self, module: nn.Module, blob: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """[n, H] from `rows` [n, H], before the routing weights; `blob` is uint8 [stride].

        `module` is the experts module (its flags, gate, activation and post-expert norm are used,
        its parameters are not). Callers pass all rows of an expert at once: splitting them may
        change the last bits.
        """


@runtime_checkable
class GroupKernel(Protocol):
    """A kernel that runs several experts of a layer-step in one call, routing weights included."""

    name: str

    def run_group(
        self,
        module: nn.Module,
        addresses: Integers,
        first: Integers,
        places: torch.Tensor,
        hidden: torch.Tensor,
        weights: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """Write the weighted rows of some experts to their places in `out` [T * K, H].

        Expert i's blob lies at addresses[i]; its rows are places[first[i] : first[i + 1]] (int64),
        and row p reads token p // K of hidden [T, H] and weight p of weights [T, K].
        """


@runtime_checkable
class AddressedKernel(Protocol):
    """A kernel that is told on the device where a small layer-step's experts lie."""

    name: str

    def run_at(
        self,
        module: nn.Module,
        addresses: torch.Tensor,
        hidden: torch.Tensor,
        weights: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """Write the weighted rows of a whole layer-step to `out` [T * K, H], with the bits of `run_group`.

        Row i, choice i % K of token i // K, is made by the expert at addresses[i], int64 [T * K] on
        the device; it is left as it is where that is 0 or less. hidden [T, H], weights [T, K], T at
        most `MAX_DECODE_TOKENS`. Nothing waits for the host. After a first call with such a module
        and such shapes, which compiles, a graph may record it.
        """
