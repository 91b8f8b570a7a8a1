"""One look at a trace tells LRU's hits at every capacity: the same as a replay at each."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.layer_steps import LayerSteps, layer_steps
from compute.replay import replay
from compute.stack_distance import stack_distances
from compute.trace import Trace

NUM_LAYERS, NUM_EXPERTS, TOP_K = 3, 5, 2


def steps_of(experts: np.ndarray, passes: list[int] | None = None) -> LayerSteps:
    num_tokens = len(experts)
    return layer_steps(
        Trace(
            experts.astype(np.int16),
            phase=np.zeros(num_tokens, np.uint8),
            sequence=np.zeros(num_tokens, np.int32),
            num_experts=NUM_EXPERTS,
            pass_number=None if passes is None else np.array(passes, dtype=np.int32),
        )
    )


@st.composite
def random_steps(draw: st.DrawFn) -> LayerSteps:
    """Traces with passes of several tokens, and with layers that were not computed."""
    num_tokens = draw(st.integers(1, 12))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    experts = np.argsort(rng.random((num_tokens, NUM_LAYERS, NUM_EXPERTS)))[:, :, :TOP_K]
    experts[rng.random((num_tokens, NUM_LAYERS)) < 0.1] = -1
    experts[0, 0] = [0, 1]
    passes = np.cumsum(rng.random(num_tokens) < 0.7).tolist() if draw(st.booleans()) else None
    return steps_of(experts, passes)


@settings(max_examples=60, deadline=None)
@given(random_steps())
def test_every_capacity_hits_as_a_replay_under_lru_does(steps: LayerSteps) -> None:
    distances = stack_distances(steps)
    for num_slots in range(distances.least_slots, NUM_LAYERS * NUM_EXPERTS + 1):
        assert distances.hits(num_slots) == replay(steps, "lru", num_slots).hits


def test_cold_lookups_are_the_distinct_experts() -> None:
    steps = steps_of(np.array([[[0, 1]] * 3, [[1, 0]] * 3, [[2, 1]] * 3]))
    distances = stack_distances(steps)
    assert distances.num_cold == 3 * 3
    assert distances.hits(15) == distances.num_lookups - distances.num_cold


def test_a_capacity_below_a_layer_step_is_refused() -> None:
    steps = steps_of(np.array([[[0, 1]] * 3, [[2, 3]] * 3]), passes=[0, 0])
    assert stack_distances(steps).least_slots == 4
    with pytest.raises(ValueError, match="up to 4 experts"):
        stack_distances(steps).hits(3)
