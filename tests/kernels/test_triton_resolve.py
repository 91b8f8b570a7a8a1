"""Resolve, gather and run_at do on the device what the plain double does: same words, same bits.

The tests of this file run in Triton's interpreter, in a process of their own.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.host_resolver import HostResolver
from support.interpreted import IS_INTERPRETED, quick_calls, run_interpreted
from support.layer_steps import Step, experts_module, gated_tensors, make_step, pool_of, run_step
from torch import Tensor, nn

from compute.beside.resolver import POPPED
from compute.beside.words import (
    EPOCH,
    FOUND_SHIFT,
    IN_PLACE,
    IN_SLOT,
    LANDED,
    PUSHED,
    REPEATED,
    RESIDENT,
    DeviceWords,
)
from compute.kernels.base import AddressedKernel

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

PAGE = 4096
GARBAGE = -7

if not IS_INTERPRETED:

    @pytest.mark.timeout(300)
    def test_resolving_is_right_in_tritons_interpreter() -> None:
        run_interpreted(__file__)


else:
    from compute.kernels.triton_kernel import TritonKernel
    from compute.kernels.triton_resolve import MAX_ROWS, TritonResolver

    @pytest.fixture(autouse=True, scope="module")
    def in_less_time() -> Iterator[None]:
        with quick_calls():
            yield

    # --- resolve ----------------------------------------------------------------------------------

    @dataclass
    class Turn:
        """What the host does before a layer-step, and the step: `moves` are (key, is it in a slot)."""

        moves: list[tuple[int, bool]]
        num_freed: int
        epoch: int
        layer: int
        index: list[int]
        predicted: list[int] | None

    @dataclass
    class Story:
        num_experts: int
        num_layers: int
        num_open: int
        num_cells: int
        first_step: int
        popped: int
        offered: int
        turns: list[Turn]

    @st.composite
    def turns(draw: st.DrawFn, num_experts: int, num_layers: int) -> Turn:
        expert = st.integers(0, num_experts - 1)
        stranger = st.sampled_from([-1, num_experts, 2**28, 2**32 + num_experts - 1, -(2**40)])
        num_rows = draw(st.integers(1, 12) | st.sampled_from([31, 32, 33, 64, MAX_ROWS]))
        return Turn(
            draw(
                st.lists(st.tuples(st.integers(0, num_experts * num_layers - 1), st.booleans()), max_size=6)
            ),
            draw(st.integers(0, 4)),
            draw(st.sampled_from([0, 1, 77, 2**32 - 1, 2**40 + 5])),
            draw(st.integers(0, num_layers - 1)),
            draw(st.lists(expert | expert | stranger, min_size=num_rows, max_size=num_rows)),
            draw(st.none() | st.lists(expert, max_size=40)),
        )

    @st.composite
    def stories(draw: st.DrawFn) -> Story:
        num_experts, num_layers = draw(st.integers(1, 20)), draw(st.integers(1, 3))
        num_open = draw(st.integers(1, 9))
        popped = draw(st.sampled_from([0, 1, 5, 2**31 - 2, 2**40]))
        return Story(
            num_experts,
            num_layers,
            num_open,
            draw(st.integers(1, 5)),
            draw(st.sampled_from([0, 1, 48, 2**31 - 2, 2**33 + 3])),
            popped,
            popped + draw(st.integers(0, num_open)),
            draw(st.lists(turns(num_experts, num_layers), min_size=1, max_size=4)),
        )

    class Machine:
        """Words, state and outputs of one resolver."""

        def __init__(self, story: Story) -> None:
            num_keys = story.num_experts * story.num_layers
            self.frames = torch.arange(1, num_keys + 1) * PAGE + 2**46
            self.words = DeviceWords(
                self.frames.clone(),
                torch.tensor([0, story.offered]),
                torch.arange(story.num_open) * PAGE + 2**34,
                torch.zeros(story.num_cells, 1 + MAX_ROWS + 40, dtype=torch.int64),
            )
            self.state = torch.tensor([story.first_step, story.popped, story.offered])
            self.addresses, self.sources = torch.full((2, MAX_ROWS), GARBAGE)
            self.num_experts = story.num_experts

        def play(self, resolver: TritonResolver | HostResolver, turn: Turn) -> None:
            for key, is_in_slot in turn.moves:
                self.words.table[key] = 2**35 + PAGE * key + IN_SLOT if is_in_slot else self.frames[key]
            self._offer(turn.num_freed)
            self.words.control[EPOCH] = turn.epoch
            resolver.resolve(
                self.words,
                self.state,
                turn.layer,
                self.num_experts,
                torch.tensor(turn.index)[None],
                None if turn.predicted is None else torch.tensor(turn.predicted, dtype=torch.int64),
                self.addresses[: len(turn.index)],
                self.sources[: len(turn.index)],
            )

        def _offer(self, num_freed: int) -> None:
            """As many slots as the ring has room for."""
            pushed, popped = int(self.words.control[PUSHED]), int(self.state[POPPED])
            for number in range(pushed, min(pushed + num_freed, popped + len(self.words.opened))):
                self.words.opened[number % len(self.words.opened)] = 2**36 + PAGE * number
                self.words.control[PUSHED] += 1

        def memory(self) -> tuple[Tensor, ...]:
            return (*astuple(self.words), self.state, self.addresses, self.sources)

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(stories())
    def test_every_word_is_the_doubles(story: Story) -> None:
        device, double = Machine(story), Machine(story)
        for turn in story.turns:
            device.play(TritonResolver(), turn)
            double.play(HostResolver(), turn)
            for found, expected in zip(device.memory(), double.memory(), strict=True):
                assert torch.equal(found, expected)

    # --- gather -----------------------------------------------------------------------------------

    def pages(num_pages: int, seed: int = 0) -> Tensor:
        """uint8, beginning at a page."""
        raw = torch.empty((num_pages + 1) * PAGE, dtype=torch.uint8)
        raw.random_(generator=torch.Generator().manual_seed(seed))
        start = -raw.data_ptr() % PAGE
        return raw[start : start + num_pages * PAGE]

    @pytest.mark.parametrize("num_pages", [1, 4, 7, 133])
    def test_blobs_are_gathered_whole_and_nothing_else_is_touched(num_pages: int) -> None:
        frames, slots = pages(3 * num_pages, 1), pages(5 * num_pages, 2)
        size, expected = num_pages * PAGE, slots.clone()
        moves = [(4, 0), None, (1, 2), (2, 1)]
        addresses, sources = torch.tensor([[slots.data_ptr()], [0]]).repeat(1, len(moves))
        for row, move in enumerate(moves):
            if move:
                slot, frame = move
                addresses[row] = slots.data_ptr() + slot * size
                sources[row] = frames.data_ptr() + frame * size
                expected[slot * size :][:size] = frames[frame * size :][:size]
        TritonResolver().gather(addresses, sources, size)
        assert torch.equal(slots, expected)

    # --- run_at -----------------------------------------------------------------------------------

    def run_at(kernel: TritonKernel, module: nn.Module, step: Step, addresses: Tensor) -> Tensor:
        dtype = torch.promote_types(step.hidden.dtype, step.weights.dtype)
        out = torch.full((step.weights.numel(), step.hidden.shape[1]), 7, dtype=dtype)
        with torch.no_grad():
            kernel.run_at(module, addresses, step.hidden, step.weights, out)
        return out

    @pytest.mark.parametrize(
        "bits,num_tokens,has_norm", [("4", 1, True), ("4", 2, False), ("none", 3, False)]
    )
    def test_run_at_gives_the_bits_of_run_group_and_leaves_rows_without_an_address_alone(
        bits: str, num_tokens: int, has_norm: bool
    ) -> None:
        step = make_step(gated_tensors(32, 32), bits, 32, num_tokens=num_tokens, dtype=torch.float16)
        norm = nn.LayerNorm(32, dtype=torch.float16) if has_norm else None
        module, kernel = experts_module(post_norm=norm), TritonKernel(step.layout)
        assert isinstance(kernel, AddressedKernel)
        _, lie_at = pool_of(step, [2, 0, 1], 3)
        with torch.no_grad():
            expected = run_step(kernel, module, step, lie_at)
        addresses = torch.tensor(lie_at)[step.index.reshape(-1)]
        assert torch.equal(run_at(kernel, module, step, addresses), expected)
        addresses[1], expected[1] = 0, 7
        assert torch.equal(run_at(kernel, module, step, addresses), expected)

    def test_misses_read_in_place_or_landed_change_no_bit() -> None:
        step = make_step(gated_tensors(32, 32), "4", 32, num_experts=4, num_tokens=2, top_k=3)
        step = replace(step, index=torch.tensor([[0, 1, 2], [3, 1, 0]]))
        module, kernel, resolver = experts_module(), TritonKernel(step.layout), TritonResolver()
        frames, in_frames = pool_of(step, range(4), 4)
        slots, in_slots = pool_of(step, [3], 5)  # expert 0 alone
        whole = run_step(kernel, module, step, in_frames)
        table = torch.tensor([in_slots[0] | IN_SLOT, *in_frames[1:]])
        opened = torch.tensor([slots[1].data_ptr(), slots[4].data_ptr()])
        words = DeviceWords(table, torch.tensor([0, 2]), opened, torch.zeros(1, 7, dtype=torch.int64))
        state = torch.tensor([1, 0, 0])
        addresses, sources = torch.zeros(2, 6, dtype=torch.int64)
        found = []
        for _ in range(2):
            resolver.resolve(words, state, 0, 4, step.index, None, addresses, sources)
            resolver.gather(addresses, sources, step.layout.stride)
            found.append((words.mailbox[0, 1:] >> FOUND_SHIFT & 15).tolist())
            assert torch.equal(run_at(kernel, module, step, addresses), whole)
        assert found[0] == [RESIDENT, IN_PLACE, IN_PLACE, IN_PLACE, REPEATED, REPEATED]
        assert found[1] == [RESIDENT, LANDED, LANDED, IN_PLACE, REPEATED, REPEATED]
        assert torch.equal(slots[1], step.blobs[1]) and torch.equal(slots[4], step.blobs[2])
        assert state.tolist() == [1, 2, 2]
        del frames
