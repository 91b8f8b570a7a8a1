"""Resolve and gather: routed experts become addresses on the device, and what is missing is brought there.

Owns the two Triton kernels before an MoE layer's projections and their launches. `Resolver` has the
contract, `compute.beside.words` the words. One compilation serves all layers: nothing about a
layer, a step or where a tensor lies is compiled in. Imports triton.
"""

from contextlib import nullcontext
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from compute.beside import resolver, words
from compute.beside.resolver import MAX_ROWS
from compute.beside.words import DeviceWords
from compute.kernels.triton_launch import Launch

_STEP, _POPPED, _OFFERED = map(tl.constexpr, (resolver.STEP, resolver.POPPED, resolver.OFFERED))
_EPOCH, _PUSHED, _IN_SLOT = map(tl.constexpr, (words.EPOCH, words.PUSHED, words.IN_SLOT))
_RESIDENT, _IN_PLACE = tl.constexpr(words.RESIDENT), tl.constexpr(words.IN_PLACE)
_LANDED, _REPEATED, _UNKNOWN = map(tl.constexpr, (words.LANDED, words.REPEATED, words.UNKNOWN))
_FOUND_SHIFT, _EXPERT_MASK = tl.constexpr(words.FOUND_SHIFT), tl.constexpr(words.MAX_EXPERTS - 1)
_TAG_MASK, _PAYLOAD_MASK = tl.constexpr(words.TAG_MASK), tl.constexpr(words.PAYLOAD_MASK)

#: Rows are at least the threads of one warp, and warps as many as rows fill: one thread for each row.
#: Where threads are more than rows, several load the same word, and may find the host's old and new one.
_WARP = 32
_WORD = 8
_PAGE = tl.constexpr(4096)
#: What a program has on its way at once: eight loads of 16 bytes for each of 128 threads. Memory
#: across PCIe 5 answers within 2 us at 50 GB/s: 100 KB must be on their way, which seven programs have.
_PART_BYTES = 16 * 1024
#: Programs of a row: a single missing expert fills the link, and rows where nothing is to be
#: brought cost no more than these, which return at once.
_MOST_PARTS = 32

_NUMBERS = ["layer", "num_experts", "num_rows", "num_predicted", "num_open", "num_cells", "width"]
_POINTERS = [
    "table_ptr", "control_ptr", "opened_ptr", "mailbox_ptr", "state_ptr", "index_ptr", "predicted_ptr",
    "addresses_ptr", "sources_ptr",
]  # fmt: skip


@triton.jit
def first_rows(
    index_ptr: tl.tensor, expert: tl.tensor, num_rows: tl.tensor, COLUMNS: tl.constexpr
) -> tl.tensor:
    """int32 [R]: the first row with the same expert; anything where there is none."""
    column = tl.arange(0, COLUMNS)
    other = tl.load(index_ptr + column, mask=column < num_rows, other=-1)
    is_same = expert[:, None] == other[None, :]
    return tl.min(tl.where(is_same, column[None, :], COLUMNS - 1), axis=1)


@triton.jit
def open_slots(
    opened_ptr: tl.tensor, popped: tl.tensor, room: tl.tensor, num_open: tl.tensor, ROWS: tl.constexpr
) -> tl.tensor:
    """int64 [R]: the open slots that this step may take, in their order; fetched while the table is,
    for a step that waited for the table first would cross the link twice."""
    row = tl.arange(0, ROWS)
    place = ((popped % num_open).to(tl.int32) + row) % num_open
    return tl.load(opened_ptr + place, mask=row < room, other=0, volatile=True)


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_POINTERS)
def resolve_rows(
    table_ptr: tl.tensor, control_ptr: tl.tensor, opened_ptr: tl.tensor, mailbox_ptr: tl.tensor,
    state_ptr: tl.tensor, index_ptr: tl.tensor, predicted_ptr: tl.tensor, addresses_ptr: tl.tensor,
    sources_ptr: tl.tensor,
    layer: tl.tensor, num_experts: tl.tensor, num_rows: tl.tensor, num_predicted: tl.tensor,
    num_open: tl.tensor, num_cells: tl.tensor, width: tl.tensor,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """`Resolver.resolve` by one program of ROWS threads.

    What the host writes is loaded anew, each word once, by one thread. What it reads is stored
    through, a word at a time.
    """
    row = tl.arange(0, ROWS)
    is_row = row < num_rows
    step = tl.load(state_ptr + _STEP) + layer
    popped = tl.load(state_ptr + _POPPED)
    room = tl.load(state_ptr + _OFFERED) - popped
    expert = tl.load(index_ptr + row, mask=is_row, other=-1)
    control = tl.load(control_ptr + row, mask=row < 2, other=0, volatile=True)
    opened = open_slots(opened_ptr, popped, tl.minimum(room, num_rows), num_open, ROWS)
    is_known = (expert >= 0) & (expert < num_experts)
    word = tl.load(table_ptr + layer * num_experts + expert, mask=is_known, other=_IN_SLOT, volatile=True)

    first = first_rows(index_ptr, expert, num_rows, COLUMNS)
    is_first = is_known & (first == row)
    needs = is_first & ((word & _IN_SLOT) == 0)
    rank = tl.cumsum(needs.to(tl.int32), axis=0) - needs.to(tl.int32)
    lands = needs & (rank < room)
    address = tl.where(lands, tl.gather(opened, rank, axis=0), word & ~_IN_SLOT)
    tl.store(addresses_ptr + row, tl.gather(address, first, axis=0), mask=is_row)
    tl.store(sources_ptr + row, tl.where(lands, word, 0), mask=is_row)

    found = tl.where(needs, tl.where(lands, _LANDED, _IN_PLACE), _RESIDENT)
    found = tl.where(is_known, tl.where(is_first, found, _REPEATED), _UNKNOWN)
    tag = (step & _TAG_MASK) << 32
    cell = mailbox_ptr + step % num_cells * width
    posted = tag | (found << _FOUND_SHIFT).to(tl.int64) | (expert & _EXPERT_MASK)
    tl.store(cell + 1 + row, posted, mask=is_row, cache_modifier=".wt")
    epoch = tl.sum(tl.where(row == _EPOCH, control, 0)) & _PAYLOAD_MASK
    tl.store(cell, tag | epoch, cache_modifier=".wt")
    done = 0
    while done < num_predicted:  # a range of tensors is refused by triton 3.6's interpreter under numpy 2.5
        place = done + row
        predicted = tl.load(predicted_ptr + place, mask=place < num_predicted)
        target = cell + 1 + num_rows + place
        tl.store(target, tag | predicted, mask=place < num_predicted, cache_modifier=".wt")
        done += ROWS

    # Every thread has read the state before one writes it.
    tl.debug_barrier()
    tl.store(state_ptr + _POPPED, popped + tl.sum(lands.to(tl.int64)))
    tl.store(state_ptr + _OFFERED, tl.sum(tl.where(row == _PUSHED, control, 0)))


@triton.jit(do_not_specialize_on_alignment=["addresses_ptr", "sources_ptr"])
def copy_parts(
    addresses_ptr: tl.tensor, sources_ptr: tl.tensor, num_bytes: tl.tensor, PART: tl.constexpr
) -> None:
    """Whole pages, from sources[i] to addresses[i] wherever sources[i] is not 0. Grid (rows, parts)."""
    i = tl.program_id(0)
    source = tl.load(sources_ptr + i)
    if source != 0:
        target = tl.load(addresses_ptr + i)
        source_ptr = tl.multiple_of(source.to(tl.pointer_type(tl.int64)), 128)
        target_ptr = tl.multiple_of(target.to(tl.pointer_type(tl.int64)), 128)
        first = tl.program_id(1) * PART
        while first < num_bytes:
            place = first // PART * (PART // 8) + tl.arange(0, PART // 8)
            is_there = place // (_PAGE // 8) < num_bytes // _PAGE
            tl.store(target_ptr + place, tl.load(source_ptr + place, mask=is_there), mask=is_there)
            first += tl.num_programs(1) * PART


@cache
def resolve_launch(num_rows: int) -> Launch:
    """For layer-steps of `num_rows` routed rows."""
    assert 0 < num_rows <= MAX_ROWS
    columns = triton.next_power_of_2(num_rows)
    rows = max(columns, _WARP)
    return Launch(resolve_rows, {"ROWS": rows, "COLUMNS": columns}, {"num_warps": rows // _WARP})


@cache
def gather_launch() -> Launch:
    return Launch(copy_parts, {"PART": _PART_BYTES}, {"num_warps": 4})


class TritonResolver:
    """See `Resolver`. The words must be page-locked: a kernel reads and writes them where they lie."""

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
        num_rows, num_predicted = index.numel(), 0 if predicted is None else predicted.numel()
        num_cells, width = words.mailbox.shape
        assert index.is_contiguous() and words.mailbox.is_contiguous()
        assert 1 + num_rows + num_predicted <= width
        predicted = index if predicted is None else predicted.contiguous()
        shared = (words.table, words.control, words.opened, words.mailbox)
        tensors = (*shared, state, index, predicted, addresses, sources)
        num_open = max(len(words.opened), 1)
        numbers = (layer, num_experts, num_rows, num_predicted, num_open, num_cells, width)
        _start(resolve_launch(num_rows), (1,), index, (*tensors, *numbers))

    def gather(self, addresses: Tensor, sources: Tensor, num_bytes: int) -> None:
        assert num_bytes % _PAGE.value == 0 and len(addresses) == len(sources)
        num_parts = min(triton.cdiv(num_bytes, _PART_BYTES), _MOST_PARTS)
        _start(gather_launch(), (len(sources), num_parts), sources, (addresses, sources, num_bytes))


def _start(launch: Launch, grid: tuple[int, ...], there: Tensor, arguments: tuple[object, ...]) -> None:
    """On the device where `there` is."""
    with torch.cuda.device(there.device) if there.is_cuda else nullcontext():
        launch.kernel[grid](*arguments, **launch.constants, **launch.options)  # type: ignore[index]
