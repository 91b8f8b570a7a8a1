"""plan_budget: slots, transit slots and frames out of --ram, --slots and what is free."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.manifests import STRIDE, manifest_of

from compute.budget import NUM_TRANSIT, Asked, plan_budget
from protocol.errors import MemoryBudgetError

MIB = 2**20


def asked(arrangement: str = "direct", **settings: object) -> Asked:
    words: dict[str, object] = {"ram": None, "slots": None, "free_bytes": 1024 * MIB, **settings}
    return Asked(arrangement, **words)  # type: ignore[arg-type]


def test_every_expert_gets_a_slot_when_half_of_memory_holds_them() -> None:
    budget = plan_budget(manifest_of(), asked())
    assert (budget.num_slots, budget.num_transit, budget.num_frames) == (32, 0, 32)
    assert budget.reason == "room for all 32 experts"


def test_half_of_memory_bounds_the_slots_when_nothing_is_said() -> None:
    budget = plan_budget(manifest_of(), asked(free_bytes=40 * STRIDE))
    assert budget.num_frames == 20
    assert budget.num_slots == 20 - NUM_TRANSIT
    assert "half of" in budget.reason


def test_ram_bounds_the_frames() -> None:
    budget = plan_budget(manifest_of(), asked(ram=12 * STRIDE + 5))
    assert budget.num_frames == 12
    assert "--ram" in budget.reason


def test_slots_come_with_transit_slots_beside_them() -> None:
    budget = plan_budget(manifest_of(), asked(slots=8))
    assert (budget.num_slots, budget.num_transit, budget.num_frames) == (8, NUM_TRANSIT, 8 + NUM_TRANSIT)
    assert budget.notices == ()


def test_no_more_transit_slots_than_experts_without_a_slot() -> None:
    assert plan_budget(manifest_of(), asked(slots=31)).num_transit == 1


def test_ram_for_exactly_all_experts_holds_them_all() -> None:
    assert plan_budget(manifest_of(), asked(ram=32 * STRIDE)).num_slots == 32


def test_smaller_ram_beats_slots_and_is_named() -> None:
    budget = plan_budget(manifest_of(), asked(ram=10 * STRIDE, slots=20))
    assert (budget.num_slots, budget.num_transit) == (9, 1)
    assert "--ram" in budget.notices[0] and "--slots 20" in budget.notices[0]


def test_smaller_slots_beat_ram_and_are_named() -> None:
    budget = plan_budget(manifest_of(), asked(ram=30 * STRIDE, slots=5))
    assert budget.num_slots == 5
    assert "--slots 5 is less than --ram" in budget.notices[0]


def test_more_slots_than_experts_are_taken_for_all() -> None:
    budget = plan_budget(manifest_of(), asked(slots=1000))
    assert budget.num_slots == 32
    assert "more than the model's 32 experts" in budget.notices[0]


def test_top_k_slots_are_legal() -> None:
    assert plan_budget(manifest_of(), asked(slots=2)).num_slots == 2


def test_fewer_slots_than_top_k_are_refused() -> None:
    with pytest.raises(ValueError, match=r"--slots is 1, but a token of this model uses 2 experts"):
        plan_budget(manifest_of(), asked(slots=1))


def test_more_ram_than_there_is_free_is_refused() -> None:
    with pytest.raises(MemoryBudgetError, match=r"7\.0 GiB of RAM asked, 3\.0 GiB free"):
        plan_budget(manifest_of(), asked(ram=7 * 2**30, free_bytes=3 * 2**30))


def test_ram_below_one_token_is_refused_with_the_least_that_works() -> None:
    with pytest.raises(MemoryBudgetError, match=r"holds 2 experts, at least 3 are needed \(12\.0 KiB\)"):
        plan_budget(manifest_of(), asked(ram=2 * STRIDE))


def test_slots_that_memory_does_not_hold_are_refused() -> None:
    with pytest.raises(MemoryBudgetError, match="--slots is 20, but the"):
        plan_budget(manifest_of(), asked(slots=20, free_bytes=15 * STRIDE))


def test_a_running_loader_bounds_slots_by_its_free_frames() -> None:
    budget = plan_budget(manifest_of(), asked(free_frames=11, slots=20))
    assert (budget.num_slots, budget.num_frames) == (10, 11)
    assert "the loader has room for 11 experts" in budget.notices[0]


def test_emulated_keeps_slots_and_frames_apart() -> None:
    budget = plan_budget(manifest_of(), asked("emulated", slots=8, ram=16 * STRIDE))
    assert (budget.num_slots, budget.num_transit, budget.num_frames) == (8, NUM_TRANSIT, 16)


def test_emulated_needs_two_frames() -> None:
    with pytest.raises(MemoryBudgetError, match="holds 1 experts, at least 2 are needed"):
        plan_budget(manifest_of(), asked("emulated", slots=8, ram=STRIDE))


def test_emulated_takes_no_more_of_a_running_loader_than_its_slots() -> None:
    budget = plan_budget(manifest_of(), asked("emulated", slots=8, free_frames=30))
    assert budget.num_frames == 8 + NUM_TRANSIT


def test_emulated_slots_and_frames_must_fit_together() -> None:
    with pytest.raises(MemoryBudgetError, match="pass a smaller --ram or fewer --slots"):
        plan_budget(manifest_of(), asked("emulated", slots=20, ram=20 * STRIDE, free_bytes=30 * STRIDE))


def on_device(arrangement: str = "pinned", **settings: object) -> Asked:
    return asked(arrangement, **{"free_vram": 16 * STRIDE, **settings})


def test_pinned_has_a_frame_for_every_expert_and_slots_by_device_memory() -> None:
    budget = plan_budget(manifest_of(), on_device())
    assert (budget.num_slots, budget.num_transit, budget.num_frames) == (14 - NUM_TRANSIT, NUM_TRANSIT, 32)
    assert "seven eighths of" in budget.reason and "device memory" in budget.reason


def test_staged_has_as_many_frames_as_ram_holds() -> None:
    budget = plan_budget(manifest_of(), on_device("staged", ram=9 * STRIDE, slots=6))
    assert (budget.num_slots, budget.num_transit, budget.num_frames) == (6, NUM_TRANSIT, 9)


def test_vram_bounds_slots_and_transit_together() -> None:
    budget = plan_budget(manifest_of(), on_device(vram=10 * STRIDE))
    assert budget.num_slots + budget.num_transit == 10 and "--vram" in budget.reason


def test_device_memory_for_all_experts_holds_them_all() -> None:
    assert plan_budget(manifest_of(), on_device(free_vram=64 * STRIDE)).num_slots == 32


def test_more_slots_than_the_device_holds_are_refused_with_the_number_that_fits() -> None:
    with pytest.raises(MemoryBudgetError, match=r"--slots is 20, but .* pass --slots 15 or fewer"):
        plan_budget(manifest_of(), on_device(slots=20))


def test_more_vram_than_is_free_is_refused_with_the_number_that_fits() -> None:
    with pytest.raises(MemoryBudgetError, match=r"64\.0 KiB are free on the device, enough for 16 slots"):
        plan_budget(manifest_of(), on_device(vram=20 * STRIDE))


def test_vram_below_one_token_is_refused_with_the_least_that_works() -> None:
    with pytest.raises(MemoryBudgetError, match="at least 3 are needed"):
        plan_budget(manifest_of(), on_device(vram=2 * STRIDE))


def test_staged_needs_two_frames() -> None:
    with pytest.raises(MemoryBudgetError, match="at least 2 are needed"):
        plan_budget(manifest_of(), on_device("staged", ram=STRIDE))


@given(
    arrangement=st.sampled_from(["direct", "emulated"]),
    top_k=st.integers(1, 8),
    slots=st.none() | st.integers(0, 100),
    ram=st.none() | st.integers(0, 100 * STRIDE),
    free=st.integers(0, 300 * STRIDE),
    free_frames=st.none() | st.integers(0, 64),
)
def test_a_plan_is_legal_and_stays_within_what_there_is(
    arrangement: str,
    top_k: int,
    slots: int | None,
    ram: int | None,
    free: int,
    free_frames: int | None,
) -> None:
    manifest = manifest_of(top_k=top_k)
    try:
        budget = plan_budget(
            manifest,
            asked(
                arrangement,
                slots=slots,
                ram=ram,
                free_bytes=free,
                free_frames=free_frames,
            ),
        )
    except (ValueError, MemoryBudgetError):
        return
    assert top_k <= budget.num_slots <= manifest.num_keys
    assert budget.num_transit >= 1 or budget.num_slots == manifest.num_keys
    assert slots is None or budget.num_slots <= slots
    if free_frames is not None:
        assert budget.num_frames <= free_frames
    elif arrangement == "direct":
        assert budget.num_frames == budget.num_slots + budget.num_transit
        assert budget.num_frames * STRIDE <= (free if ram is None else ram)
    else:
        assert (budget.num_frames + budget.num_slots + budget.num_transit) * STRIDE <= free
