"""Stories for resolvers: what a host does to shared words between layer-steps, and what is routed in them.

Addresses are made up, for a resolver reads and writes words alone.
"""

from dataclasses import astuple, dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from compute.beside.resolver import POPPED, Resolver
from compute.beside.words import EPOCH, IN_SLOT, PUSHED, DeviceWords, Extent

PAGE = 4096
GARBAGE = -7
MAX_ROWS = 128
MAX_PREDICTED = 40


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

    @property
    def extent(self) -> Extent:
        num_keys = self.num_experts * self.num_layers
        return Extent(num_keys, self.num_open, self.num_cells, 1 + MAX_ROWS + MAX_PREDICTED)


@st.composite
def turns(draw: st.DrawFn, num_experts: int, num_layers: int) -> Turn:
    expert = st.integers(0, num_experts - 1)
    stranger = st.sampled_from([-1, num_experts, 2**28, 2**32 + num_experts - 1, -(2**40)])
    num_rows = draw(st.integers(1, 12) | st.sampled_from([31, 32, 33, 64, MAX_ROWS]))
    return Turn(
        draw(st.lists(st.tuples(st.integers(0, num_experts * num_layers - 1), st.booleans()), max_size=6)),
        draw(st.integers(0, 4)),
        draw(st.sampled_from([0, 1, 77, 2**32 - 1, 2**40 + 5])),
        draw(st.integers(0, num_layers - 1)),
        draw(st.lists(expert | expert | stranger, min_size=num_rows, max_size=num_rows)),
        draw(st.none() | st.lists(expert, max_size=MAX_PREDICTED)),
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
        draw(st.sampled_from([0, 1, 48, 2**31 - 2, 2**31, 2**33 + 3])),
        popped,
        popped + draw(st.integers(0, num_open)),
        draw(st.lists(turns(num_experts, num_layers), min_size=1, max_size=4)),
    )


class Machine:
    """One resolver's words, state and outputs, and what the host does to them."""

    def __init__(self, story: Story, words: DeviceWords, device: str = "cpu") -> None:
        num_keys = story.num_experts * story.num_layers
        self.words = words
        self.state = torch.tensor([story.first_step, story.popped, story.offered], device=device)
        self.addresses, self.sources = torch.full((2, MAX_ROWS), GARBAGE, device=device)
        self._num_experts = story.num_experts
        self._frames = torch.arange(1, num_keys + 1) * PAGE + 2**46
        self._device = device
        words.table.copy_(self._frames)
        words.control.copy_(torch.tensor([0, story.offered]))
        words.opened.copy_(torch.arange(story.num_open) * PAGE + 2**34)

    def play(self, resolver: Resolver, turn: Turn) -> None:
        for key, is_in_slot in turn.moves:
            self.words.table[key] = 2**35 + PAGE * key + IN_SLOT if is_in_slot else self._frames[key]
        self._offer(turn.num_freed)
        self.words.control[EPOCH] = turn.epoch
        resolver.resolve(
            self.words,
            self.state,
            turn.layer,
            self._num_experts,
            torch.tensor(turn.index, device=self._device)[None],
            None if turn.predicted is None else torch.tensor(turn.predicted, device=self._device).long(),
            self.addresses[: len(turn.index)],
            self.sources[: len(turn.index)],
        )

    def _offer(self, num_freed: int) -> None:
        """As many slots as the ring has room for."""
        pushed, popped = int(self.words.control[PUSHED]), int(self.state[POPPED])
        for number in range(pushed, min(pushed + num_freed, popped + len(self.words.opened))):
            self.words.opened[number % len(self.words.opened)] = 2**36 + PAGE * number
            self.words.control[PUSHED] += 1

    def memory(self) -> list[Tensor]:
        """Everything there is, once the device is done."""
        told = (*astuple(self.words), self.state, self.addresses, self.sources)
        return [tensor.cpu() for tensor in told]


def plain_words(extent: Extent) -> DeviceWords:
    """As `SharedWords`, in memory of no other kind."""
    mailbox = torch.full((extent.num_cells, extent.width), -1)
    table, control, opened = (
        torch.zeros(n, dtype=torch.int64) for n in (extent.num_keys, 2, extent.num_open)
    )
    return DeviceWords(table, control, opened, mailbox)
