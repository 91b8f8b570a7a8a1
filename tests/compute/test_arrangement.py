"""choose_device and choose_arrangement: what --device, --arrangement and memory come to."""

import pytest
from support.manifests import manifest_of

from compute.arrangement import HostMemory, choose_arrangement, choose_device
from protocol.errors import MemoryBudgetError

MANIFEST = manifest_of()
STRIDE = MANIFEST.layout.stride
PLENTY = HostMemory(ram=None, free_bytes=1024 * STRIDE)


@pytest.mark.parametrize(
    ("device", "arrangement", "has_cuda", "chosen"),
    [
        ("auto", "auto", False, "cpu"),
        ("auto", "auto", True, "cuda"),
        ("cpu", "auto", True, "cpu"),
        ("cuda", "auto", True, "cuda"),
        ("auto", "emulated", True, "cpu"),
        ("auto", "staged", True, "cuda"),
    ],
)
def test_the_device_follows_what_was_said_and_what_there_is(
    device: str, arrangement: str, has_cuda: bool, chosen: str
) -> None:
    assert choose_device(device, arrangement, has_cuda) == chosen


@pytest.mark.parametrize("arrangement", ["staged", "pinned"])
def test_arrangements_of_cuda_are_refused_without_it(arrangement: str) -> None:
    with pytest.raises(ValueError, match="there is no CUDA device here: use direct or emulated"):
        choose_device("auto", arrangement, has_cuda=False)


@pytest.mark.parametrize(
    ("device", "arrangement", "vram", "sentence"),
    [
        ("cuda", "auto", None, "no CUDA device here: use auto or cpu"),
        ("auto", "sideways", None, "'sideways'; allowed: auto, direct, emulated, staged, pinned"),
        ("tpu", "auto", None, "allowed: auto, cpu, cuda"),
        ("auto", "auto", 2**30, "--vram belongs to the arrangements with a CUDA device"),
    ],
)
def test_what_cannot_be_had_is_refused(
    device: str, arrangement: str, vram: int | None, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        choose_device(device, arrangement, has_cuda=False, vram=vram)


@pytest.mark.parametrize(("device", "arrangement"), [("cpu", "pinned"), ("cuda", "direct")])
def test_a_device_and_an_arrangement_that_contradict_each_other_are_refused(
    device: str, arrangement: str
) -> None:
    with pytest.raises(ValueError, match="--device is"):
        choose_device(device, arrangement, has_cuda=True)


def test_auto_is_direct_on_the_cpu_and_says_why() -> None:
    reason = "the device is the CPU: experts are read in place"
    assert choose_arrangement("auto", "cpu", MANIFEST, PLENTY) == ("direct", reason)


def test_auto_is_pinned_where_memory_holds_every_expert() -> None:
    arrangement, reason = choose_arrangement("auto", "cuda", MANIFEST, PLENTY)
    assert arrangement == "pinned" and "all 32 experts" in reason


@pytest.mark.parametrize(
    ("host", "why"),
    [
        (HostMemory(ram=31 * STRIDE, free_bytes=1024 * STRIDE), "--ram .* is less"),
        (HostMemory(ram=None, free_bytes=40 * STRIDE), "three quarters of"),
        (HostMemory(ram=None, free_bytes=1024 * STRIDE, free_frames=31), "the loader has room for 31"),
        (HostMemory(ram=None, free_bytes=1024 * STRIDE, pin_bytes=31 * STRIDE), "page-locks .* at most"),
    ],
)
def test_auto_is_staged_where_something_is_too_small_and_names_it(host: HostMemory, why: str) -> None:
    arrangement, reason = choose_arrangement("auto", "cuda", MANIFEST, host)
    assert arrangement == "staged"
    with pytest.raises(MemoryBudgetError, match=why):
        choose_arrangement("pinned", "cuda", MANIFEST, host)
    assert choose_arrangement("staged", "cuda", MANIFEST, host) == ("staged", "asked for")
    assert reason.startswith("a CUDA device, and")


def test_ram_for_exactly_every_expert_is_enough_for_pinned() -> None:
    host = HostMemory(ram=32 * STRIDE, free_bytes=32 * STRIDE)
    assert choose_arrangement("auto", "cuda", MANIFEST, host)[0] == "pinned"


def test_a_stage_for_a_device_is_refused_where_there_is_none() -> None:
    with pytest.raises(
        ValueError, match=r"--stage 2 lets a CUDA device decode by itself.* computes on the CPU"
    ):
        choose_device("auto", "auto", has_cuda=False, stage=2)
    assert choose_device("auto", "auto", has_cuda=True, stage=2) == "cuda"
