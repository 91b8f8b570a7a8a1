"""What the supervisor plans where there is a CUDA device: frames here, slots where the device is seen."""

from pathlib import Path

import pytest
from support.synthetic_store import make_store

from launch import plan
from launch.config import RunConfig
from launch.plan import plan_run
from protocol.errors import MemoryBudgetError
from protocol.manifest import Manifest


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planned") / "store"
    make_store(folder, num_layers=4, num_experts=8, top_k=2, stride_kib=16)
    return folder


@pytest.fixture(autouse=True)
def there_is_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "has_cuda", lambda: True)


def test_memory_for_every_expert_is_pinned(store: Path) -> None:
    planned = plan_run(RunConfig(model=str(store), vram=2**21), "")
    assert planned.loader is not None
    assert planned.loader.num_frames == 32 and (planned.job.slots, planned.job.vram) == (None, 2**21)
    assert "pinned (a CUDA device, and host memory for all 32 experts)" in planned.headline
    assert "slots in --vram 2.0 MiB" in planned.headline
    assert planned.reason == "", "the compute process knows what it came to"


def test_less_ram_is_staged(store: Path) -> None:
    ram = 20 * Manifest.read(store).layout.stride
    planned = plan_run(RunConfig(model=str(store), ram=ram, slots=8), "")
    assert planned.loader is not None
    assert planned.loader.num_frames == 20 and "staged (a CUDA device, and --ram" in planned.headline
    with pytest.raises(MemoryBudgetError, match="use staged"):
        plan_run(RunConfig(model=str(store), ram=ram, arrangement="pinned"), "")


def test_the_cpu_can_be_asked_for(store: Path) -> None:
    planned = plan_run(RunConfig(model=str(store), device="cpu"), "")
    assert planned.job.arrangement == "direct"
