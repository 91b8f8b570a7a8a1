"""The loader of a run: what it is started with, and that it is kept alive while there is work for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from compute.loader_process import start_loader
from launch.job import Job
from launch.keeper import Keeper


@dataclass(frozen=True, slots=True)
class LoaderPlan:
    """A loader to start: its store, its arena's frames, how it reads, and the file for its spans."""

    store: Path
    num_frames: int
    direct_io: str
    timeline: Path | None = None


@contextmanager
def own_loader(
    plan: LoaderPlan | None, job: Job, timeout_s: float | None
) -> Iterator[tuple[Job, Keeper | None]]:
    """Start the loader; `job` with its endpoint, and who keeps it. Without a plan the job has one already.

    Raises SidestageError with the loader's sentence. Leaving stops the loader.
    """
    if plan is None:
        yield job, None
        return
    with start_loader(
        plan.store,
        num_frames=plan.num_frames,
        direct_io=plan.direct_io,
        timeline=plan.timeline,
        timeout_s=timeout_s,
    ) as loader:
        yield replace(job, endpoint=loader.endpoint), Keeper(loader, timeout_s)
