"""bench --device cuda, as far as it goes without one: what is refused, and what the arms are told."""

from pathlib import Path

import pytest
from support.manifests import manifest_of

from launch.bench import config as bench_config
from launch.bench.arm_process import _environment
from launch.bench.arms import arm_of
from launch.bench.bench import _version
from launch.bench.config import BenchConfig
from launch.bench.jobs import plan_jobs


@pytest.fixture
def there_is_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_config, "has_cuda", lambda: True)


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_config, "has_cuda", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device here: use cpu"):
        BenchConfig(device="cuda")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"link": 10**9}, "cross the real link"),
        ({"rate": 10**9}, "cross the real link"),
        ({"ram": 10**9}, "pass --slots"),
    ],
)
def test_what_stands_in_for_a_device_is_refused_beside_one(
    there_is_cuda: None, settings: dict[str, int], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        BenchConfig(device="cuda", **settings)  # type: ignore[arg-type]


def test_every_arm_of_ours_is_pinned_with_a_frame_for_every_expert(
    there_is_cuda: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    manifest = manifest_of()
    arms = [arm_of(name, 1) for name in ("resident", "offload")]
    config = BenchConfig(device="cuda", slots=8, direct_io="off")
    jobs, _ = plan_jobs(arms, config, tmp_path, manifest, None, 2**30)
    assert [(job.arrangement, job.slots, job.frames) for job in jobs] == [
        ("pinned", 32, 32),
        ("pinned", 8, 32),
    ]
    assert {_environment(job).get("CUDA_VISIBLE_DEVICES") for job in jobs} == {"3"}, "the device is hidden"


def test_a_report_is_written_where_sidestage_itself_is_not_installed() -> None:
    assert _version("sidestage-that-nobody-has") == "not installed" != _version("torch")
