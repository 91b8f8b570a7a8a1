"""Routing that is told: what experts modules are given, and how wrong a gate is made."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compute.trace import Trace
from compute.trace_file import write
from launch.bench.routing import Routing, guess, impose, recorded, sweep

CHOSEN = np.argsort(np.random.default_rng(0).random((500, 2, 16)), axis=2)[:, :, :4].astype(np.int64)


class Echo(nn.Module):
    """Experts, or a router, that answer what they were given."""

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        return args


def test_a_layer_s_experts_are_the_trace_s_and_weights_stay() -> None:
    layers = [Echo(), Echo()]
    routing = Routing(CHOSEN, CHOSEN)
    routing.impose_on(layers, [None, None])
    given = torch.ones(3, 8), torch.zeros(3, 4, dtype=torch.long), torch.rand(3, 4)
    assert torch.equal(layers[1](*given)[1], given[1]), "nothing is imposed before it is shown"
    routing.show(7, 3)
    hidden, index, weights = layers[1](*given)
    assert np.array_equal(index, CHOSEN[7:10, 1])
    assert hidden is given[0] and torch.equal(weights, given[2])


def test_other_hooks_see_what_is_told() -> None:
    module, seen = Echo(), []
    module.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    told = torch.full((1, 2), 9)
    impose(module, lambda num_rows: told)
    module(torch.ones(1, 8), torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2))
    assert seen == [told]


def test_a_gate_that_asks_a_router_hears_the_guess_for_that_layer() -> None:
    class Router(nn.Module):
        def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return hidden, hidden, torch.zeros(len(hidden), 4, dtype=torch.long)

    router = Router()
    routing = Routing(CHOSEN, CHOSEN[::-1].copy())
    routing.impose_on([Echo(), Echo()], [None, router])
    routing.show(0, 2)
    assert np.array_equal(router.forward(torch.ones(2, 16))[2], CHOSEN[::-1][:2, 1])


@pytest.mark.parametrize("recall", [0.0, 0.75, 1.0])
def test_a_guess_is_right_as_often_as_it_is_told_to_be(recall: float) -> None:
    guessed = guess(CHOSEN, 16, recall, seed=1)
    is_right = (guessed[..., None] == CHOSEN[..., None, :]).any(axis=3)
    assert is_right.mean() == pytest.approx(recall, abs=0.03)
    assert all(len(set(token)) == 4 for token in guessed.reshape(-1, 4).tolist())
    assert np.array_equal(guessed, guess(CHOSEN, 16, recall, seed=1))


def test_where_all_experts_are_chosen_no_guess_is_wrong() -> None:
    everyone = np.tile(np.arange(4), (5, 1, 1)).astype(np.int64)
    assert np.array_equal(guess(everyone, 4, 0.0, seed=0), everyone)


def test_a_sweep_uses_every_expert() -> None:
    assert set(sweep(10, 4).flatten().tolist()) == set(range(10))
    assert sweep(10, 4).shape == (3, 4)


def test_a_trace_is_cut_to_the_model_and_gaps_are_left_out(tmp_path: Path) -> None:
    experts = CHOSEN.astype(np.int16)
    experts[0, 0] = -1
    phase, sequence = np.zeros(500, np.uint8), np.zeros(500, np.int32)
    write(tmp_path / "t.npz", Trace(experts=experts, phase=phase, sequence=sequence, num_experts=16))
    routing = recorded(tmp_path / "t.npz", 16, 4, 1, most_tokens=100)
    assert routing.num_tokens == 100
    with pytest.raises(ValueError, match=r"chooses 4 of 16 experts, the model 2 of 16"):
        recorded(tmp_path / "t.npz", 16, 2, 1, most_tokens=100)
