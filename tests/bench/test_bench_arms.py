"""Arms by name."""

import pytest

from launch.bench.arms import Arm, arm_of


def test_an_arm_looks_as_far_ahead_as_its_name_says() -> None:
    assert arm_of("offload@2", lookahead=1) == Arm("offload@2", "offload", 2)
    assert arm_of("offload@0", lookahead=1).lookahead == 0
    assert arm_of("offload", lookahead=1) == Arm("offload", "offload", 1)


def test_an_arm_with_everything_at_hand_looks_nowhere() -> None:
    assert arm_of("resident", lookahead=3).lookahead == 0
    with pytest.raises(ValueError, match="resident looks nowhere ahead"):
        arm_of("resident@1", lookahead=0)


@pytest.mark.parametrize("name", ["offload@", "offload@-1", "offload@x"])
def test_after_at_comes_a_number_of_layers(name: str) -> None:
    with pytest.raises(ValueError, match="after @ comes a number of layers, as in offload@1"):
        arm_of(name, lookahead=0)


def test_after_a_colon_comes_a_stage_of_a_device() -> None:
    assert arm_of("offload@2:3", 1) == Arm("offload@2:3", "offload", 2, stage=3)
    assert arm_of("resident:2", 1) == Arm("resident:2", "resident", 0, stage=2)
    with pytest.raises(ValueError, match="comes a stage of --device cuda, 1, 2, 3"):
        arm_of("offload:4", 1)
    with pytest.raises(ValueError, match="has no stages"):
        arm_of("accelerate:3", 1)
