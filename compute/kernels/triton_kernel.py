"""The Triton kernel: experts in device memory, read as they lie in their blobs, two launches a call.

Owns the way from a layer-step's lists to launches. Blobs go by address, so that a slot of the pool
and a page-locked frame are the same to it; an address of 0 or less is skipped. Results depend on a
row's values, its expert and the step's number of tokens: on no slot, order or company (docs/gpu.md).
Imports triton.
"""

import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain, pairwise, repeat
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from compute.kernels import triton_launch as launch
from compute.kernels.triton_gate import Gate, recognise
from compute.kernels.triton_plan import (
    MAX_DECODE_TOKENS,
    Matrix,
    Pairing,
    Tile,
    block_tile,
    decode_tile,
    down_matrix,
    rows_of_block,
    up_matrix,
)
from protocol.blob import BlobLayout

#: Whole numbers: a list, or an array.
Integers = Sequence[int] | npt.NDArray[np.int64]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_ALIGNMENT = 16


class _Experts(Protocol):
    """What transformers' experts interface gives a module."""

    has_gate: bool
    is_transposed: bool

    def _apply_gate(self, gate_up_out: Tensor) -> Tensor: ...
    def act_fn(self, hidden: Tensor) -> Tensor: ...
    def post_expert_norm(self, hidden: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one call, on the device: int64 [R] place of each, and how they are cut.

    `addresses` [R] for decode, else one of each block, with its first row and its number of rows.
    """

    places: Tensor
    addresses: Tensor
    starts: Tensor | None
    counts: Tensor | None
    num_tokens: int
    is_wide: bool


@dataclass(frozen=True)
class _Anatomy:
    """One experts module: its matrices, its gate (None: its own method is called) and its norm."""

    up: Matrix
    down: Matrix
    gate: Gate | None
    has_norm: bool

    def tiles(self, rows: Rows) -> tuple[Tile, Tile]:
        """Of the first projection, and of the second."""
        if rows.starts is None:
            return decode_tile(self.up), decode_tile(self.down)
        up = block_tile(self.up, rows.num_tokens, is_wide=rows.is_wide)
        return up, block_tile(self.down, rows.num_tokens, is_wide=rows.is_wide)


class TritonKernel:
    """Runs any expert of one layout, quantized or not, on the device of the rows it is given."""

    name = "triton"

    def __init__(self, layout: BlobLayout) -> None:
        self._layout = layout
        names = {segment.name for segment in layout.segments}
        self._has_gate = not names.isdisjoint({"gate_up_proj", "gate_up_proj.scale"})
        self._anatomies: weakref.WeakKeyDictionary[nn.Module, _Anatomy] = weakref.WeakKeyDictionary()
        self._places: dict[tuple[int, torch.device], Tensor] = {}
        for is_transposed in (False, True):
            up_matrix(layout, has_gate=self._has_gate, pairing="none", is_transposed=is_transposed)
            down_matrix(layout, is_transposed=is_transposed)

    def __call__(self, module: nn.Module, blob: Tensor, rows: Tensor) -> Tensor:
        """[n, H] from `rows` [n, H]; see `ExpertKernel`."""
        if not len(rows):
            return torch.empty_like(rows)
        places = torch.arange(len(rows))
        cut = self.cut([blob.data_ptr()], [0, len(rows)], places, rows)
        return self.run_unweighted(module, cut, rows, top_k=1)

    def run_group(
        self,
        module: nn.Module,
        addresses: Integers,
        first: Integers,
        places: Tensor,
        hidden: Tensor,
        weights: Tensor,
        out: Tensor,
    ) -> None:
        """See `GroupKernel`; addresses are the device's, places may be on the CPU or on the device."""
        self.run(module, self.cut(addresses, first, places, hidden), hidden, weights, out)

    def run_at(
        self, module: nn.Module, addresses: Tensor, hidden: Tensor, weights: Tensor, out: Tensor
    ) -> None:
        """See `AddressedKernel`."""
        assert len(hidden) <= MAX_DECODE_TOKENS and len(addresses) == weights.numel() == len(out)
        places = self._places_of(len(addresses), hidden.device)
        rows = Rows(places, addresses, None, None, len(hidden), hidden.dtype == torch.float32)
        self.run(module, rows, hidden, weights, out)

    def cut(self, addresses: Integers, first: Integers, places: Tensor, hidden: Tensor) -> Rows:
        """The rows of a call as the kernels want them, sent to the device in one asynchronous copy.

        `hidden` [T, H] of the whole layer-step, not of the call, decides how rows are cut.
        """
        addresses, first = list(map(int, addresses)), list(map(int, first))
        assert len(first) == len(addresses) + 1 and len(places) == first[-1]
        num_tokens, is_wide = len(hidden), hidden.dtype == torch.float32
        if num_tokens <= MAX_DECODE_TOKENS:
            sizes = [end - start for start, end in pairwise(first)]
            columns = [list(chain.from_iterable(map(repeat, addresses, sizes)))]
        else:
            columns = _blocks(addresses, first, rows_of_block(num_tokens, is_wide=is_wide))
        if places.device != hidden.device:
            columns.append(places.tolist())
        sent = launch.send(columns, hidden.device)
        if places.device != hidden.device:
            places = sent.pop()
        starts, counts = (sent[1], sent[2]) if len(sent) > 1 else (None, None)
        return Rows(places, sent[0], starts, counts, num_tokens, is_wide)

    def run(self, module: nn.Module, rows: Rows, hidden: Tensor, weights: Tensor, out: Tensor) -> None:
        """Two launches: weighted rows go to their places in `out` [T * K, H]. Nothing waits for the host.

        hidden [T, H]; weights [T, K]; out contiguous, in the promoted dtype of both.
        """
        assert out.is_contiguous() and out.dtype == torch.promote_types(hidden.dtype, weights.dtype)
        anatomy = self._anatomy(module, hidden)
        if anatomy.has_norm:
            normed = self.run_unweighted(module, rows, hidden, top_k=weights.shape[1])
            weighted = normed * weights.reshape(-1, 1)[rows.places]
            if rows.starts is None:
                weighted = torch.where(rows.addresses[:, None] > 0, weighted, out[rows.places])
            out[rows.places] = weighted
            return
        with _on(hidden):
            inner = self._up(module, anatomy, rows, hidden, weights.shape[1])
            _, tile = anatomy.tiles(rows)
            launch.down(anatomy.down, tile, rows, inner, weights.contiguous(), out)

    def run_unweighted(self, module: nn.Module, rows: Rows, hidden: Tensor, top_k: int) -> Tensor:
        """[R, H]: the rows' outputs in the order of `rows`, normed, before the routing weights."""
        anatomy = self._anatomy(module, hidden)
        with _on(hidden):
            inner = self._up(module, anatomy, rows, hidden, top_k)
            out = hidden.new_empty(len(rows.places), anatomy.down.rows)
            _, tile = anatomy.tiles(rows)
            launch.down(anatomy.down, tile, rows, inner, None, out)
        return cast(_Experts, module).post_expert_norm(out) if anatomy.has_norm else out

    def _places_of(self, num_rows: int, device: torch.device) -> Tensor:
        """0, 1, ... [R]. Made within a recorded graph it is that graph's own, for only a replay fills it."""
        if (num_rows, device) in self._places:
            return self._places[num_rows, device]
        places = torch.arange(num_rows, device=device)
        if not (places.is_cuda and torch.cuda.is_current_stream_capturing()):
            self._places[num_rows, device] = places
        return places

    def _up(self, module: nn.Module, anatomy: _Anatomy, rows: Rows, hidden: Tensor, top_k: int) -> Tensor:
        """[R, I] in hidden's dtype: through the gate, fused where its formula is known."""
        up, gate = anatomy.up, anatomy.gate
        tile, _ = anatomy.tiles(rows)
        width = up.rows // 2 if gate and gate.pairing != "none" else up.rows
        inner = hidden.new_empty(len(rows.places), width)
        launch.up(up, tile, gate, rows, _aligned(hidden), inner, top_k)
        if gate:
            return inner
        experts = cast(_Experts, module)
        gated = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
        return _aligned(gated)

    def _anatomy(self, module: nn.Module, hidden: Tensor) -> _Anatomy:
        found = self._anatomies.get(module)
        if found is None:
            assert hidden.dtype in DTYPES, f"the triton kernel computes in {DTYPES}, not in {hidden.dtype}"
            found = self._anatomies[module] = self._dissect(module, hidden.device)
        return found

    def _dissect(self, module: nn.Module, device: torch.device) -> _Anatomy:
        is_transposed = cast(_Experts, module).is_transposed
        gate = recognise(module, self._up_matrix("none", is_transposed).rows, device)
        up = self._up_matrix(gate.pairing if gate else "none", is_transposed)
        assert not gate or gate.pairing != "interleaved" or up.part_rows % 2 == 0, "a pair lies in two parts"
        has_norm = getattr(module, "has_post_expert_norm", False)  # unknown to transformers before 5.18
        return _Anatomy(up, down_matrix(self._layout, is_transposed=is_transposed), gate, has_norm)

    def _up_matrix(self, pairing: Pairing, is_transposed: bool) -> Matrix:
        return up_matrix(self._layout, has_gate=self._has_gate, pairing=pairing, is_transposed=is_transposed)


def _blocks(addresses: Sequence[int], first: Sequence[int], size: int) -> list[list[int]]:
    """(address, first row, number of rows) of each block of at most `size` rows of one expert."""
    blocks = [
        (address, row, min(size, end - row))
        for address, (start, end) in zip(addresses, pairwise(first))
        for row in range(start, end, size)
    ]
    return [list(column) for column in zip(*blocks)]


def _aligned(rows: Tensor) -> Tensor:
    """Contiguous, and where no other compilation (and with it perhaps other bits) would be chosen."""
    rows = rows.contiguous()
    return rows if rows.data_ptr() % _ALIGNMENT == 0 else rows.clone()


def _on(tensor: Tensor) -> AbstractContextManager[object]:
    """Launches go to the tensor's device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
