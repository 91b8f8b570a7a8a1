"""Resolve, gather and run_at do on the device what the plain double does: same words, same bits.

The tests of this file run in Triton's interpreter, in a process of their own.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from support.host_resolver import HostResolver
from support.interpreted import IS_INTERPRETED, quick_calls, run_interpreted
from support.layer_steps import Step, experts_module, gated_tensors, make_step, pool_of, run_step
from support.resolver_stories import PAGE, Machine, Story, plain_words, stories
from torch import Tensor, nn

from compute.beside.words import (
    FOUND_SHIFT,
    IN_PLACE,
    IN_SLOT,
    LANDED,
    REPEATED,
    RESIDENT,
    DeviceWords,
)
from compute.kernels.base import AddressedKernel

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

if not IS_INTERPRETED:

    @pytest.mark.timeout(300)
    def test_resolving_is_right_in_tritons_interpreter() -> None:
        run_interpreted(__file__)


else:
    from compute.kernels.triton_kernel import TritonKernel
    from compute.kernels.triton_resolve import TritonResolver

    @pytest.fixture(autouse=True, scope="module")
    def in_less_time() -> Iterator[None]:
        with quick_calls():
            yield

    # --- resolve ----------------------------------------------------------------------------------

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(stories())
    def test_every_word_is_the_doubles(story: Story) -> None:
        device, double = (Machine(story, plain_words(story.extent)) for _ in range(2))
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
