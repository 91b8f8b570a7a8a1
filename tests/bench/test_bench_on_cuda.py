"""bench --device cuda, as far as it goes without one: what is refused, and what the arms are told."""

from pathlib import Path
from typing import cast

import pytest
from support.manifests import manifest_of

from launch.bench import config as bench_config
from launch.bench.arm_process import ArmProcess, _environment
from launch.bench.arms import arm_of
from launch.bench.bench import _figures, _Measured, _version
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


def test_what_the_link_can_do_is_what_the_first_segment_told() -> None:
    """Then no other arm fills its slots over it."""
    seconds = dict.fromkeys(("pp_s", "tg_s", "pp_cpu_s", "tg_cpu_s"), 1.0)
    segment: dict[str, object] = {**seconds, "pp": {}, "tg": {}, "peak_rss_bytes": 1}
    told = [{**segment, "link_bytes_per_s": 5e9, "pp_s": 9.0}, segment]
    measured = _Measured(cast(ArmProcess, None), {"slots": 8}, told)
    figures = _figures(arm_of("offload", 1), measured, BenchConfig(pp=4, tg=4, repeat=1))
    assert figures["link_bytes_per_s"] == 5e9 and figures["slots"] == 8
    assert figures["pp_tokens_per_second"] == 4, "the warm-up counts"
