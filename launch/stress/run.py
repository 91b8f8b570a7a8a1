"""`sidestage stress`, the supervisor: sets the scene, breaks things for a while, clears up and counts.

Imports no torch. Whatever happens, no process, folder or file stays.
"""

import gc
import json
import logging
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from launch.log import log_to_stderr
from launch.output import write_json
from launch.stress.config import StressConfig
from launch.stress.injector import Injector
from launch.stress.memory import MemoryCurve
from launch.stress.progress import progress_line
from launch.stress.report import Counted, Leaks, Report, num_recoveries, total
from launch.stress.scene import CLIENT_TIMEOUT_S, READY_TIMEOUT_S, Scene
from launch.stress.tally import Count
from protocol.errors import SidestageError

_LOOK_S = 0.02
_SAMPLE_S = 0.25
_GONE_TIMEOUT_S = 5.0

_log = logging.getLogger("sidestage.stress")


def run_stress(config: StressConfig) -> int:
    """Run, report; the exit code: 1 when anything was corrupt, lost or left behind."""
    log_to_stderr()
    if config.plot:
        from launch.stress.sweep import draw_sweep

        draw_sweep(config)
    report = stress(config)
    out = sys.stderr if config.json == "-" else sys.stdout
    out.write("\n".join(report.lines()) + "\n")
    if config.json:
        write_json(config.json, json.dumps(report.as_json()))
    return 0 if report.is_clean else 1


def stress(config: StressConfig) -> Report:
    """The whole run. Raises SidestageError when it cannot begin or cannot go on."""
    num_fds = _num_fds()
    scene = Scene(config)
    try:
        _await_clients(scene)
        run = _Run(config, scene)
        run.go()
        scene.dismiss(CLIENT_TIMEOUT_S)
        counted = Counted.of(scene)
        client_fds = total(scene, Count.LEAKED_FDS) + scene.leaked_loader_fds()
        _tell_idle_trips(counted)
    finally:
        scene.close()
    leaks = Leaks(
        fds=client_fds + _leaked_fds(num_fds),
        processes=_num_alive(scene.processes()),
        files=_num_files(scene),
    )
    return counted.report(seconds=run.seconds, num_faults=run.num_faults, leaks=leaks, memory=run.memory)


class _Run:
    """From the moment all clients play until they are told to leave."""

    def __init__(self, config: StressConfig, scene: Scene) -> None:
        self.seconds = 0.0
        self.memory = MemoryCurve()
        self._config = config
        self._scene = scene
        self._injector = Injector(scene, config.faults, random.Random(config.seed), time.monotonic())

    @property
    def num_faults(self) -> int:
        return sum(self._injector.num_injected.values())

    def go(self) -> None:
        """Raises LoaderLostError when the loader cannot be kept alive."""
        started_at = time.monotonic()
        try:
            with progress_line(self._config.seconds) as show:
                self._turn_until(started_at + self._config.seconds, show)
        finally:
            self._injector.mend_all()
            self.seconds = time.monotonic() - started_at

    def _turn_until(self, until: float, show: Callable[[float, str], None]) -> None:
        sample_at = 0.0
        while (now := time.monotonic()) < until:
            self._scene.look()
            self._scene.look_after_clients()
            self._injector.act(now)
            if now >= sample_at:
                sample_at = now + _SAMPLE_S
                gone_s = self._config.seconds - (until - now)
                self.memory.note(gone_s, self._scene.memory())
                show(gone_s, self._words())
            time.sleep(_LOOK_S)

    def _words(self) -> str:
        scene = self._scene
        return (
            f"{total(scene, Count.TRANSFERS)} experts, {self.num_faults} faults, "
            f"{num_recoveries(scene)} recoveries, {total(scene, Count.CORRUPT)} corrupt"
        )


def _await_clients(scene: Scene) -> None:
    until = time.monotonic() + READY_TIMEOUT_S
    while not scene.is_lively:
        scene.look()
        if any(seat.has_left for seat in scene.seats) or time.monotonic() > until:
            raise SidestageError("the stress clients did not come up: see `sidestage doctor`")
        time.sleep(_LOOK_S)


def _tell_idle_trips(counted: Counted) -> None:
    from launch.stress.report import percentile

    _log.info(
        "idle round trip p50 %s us, p99 %s us",
        percentile(counted.idle_us, 50),
        percentile(counted.idle_us, 99),
    )


# --- what is left ------------------------------------------------------------------------------


def _num_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def _leaked_fds(before: int) -> int:
    """What the garbage collector still holds is no leak."""
    gc.collect()
    return max(_num_fds() - before, 0)


def _num_alive(processes: list[psutil.Process]) -> int:
    """psutil knows a process by its start time too: a pid that came round again is another."""
    until = time.monotonic() + _GONE_TIMEOUT_S
    while (alive := len([p for p in processes if p.is_running()])) and time.monotonic() < until:
        time.sleep(0.05)
    return alive


def _num_files(scene: Scene) -> int:
    """Our temporary folder, and the loader's folders with whatever lies in them."""
    folders: list[Path] = [scene.folder, scene.loader.folder]
    return sum(1 + len(list(folder.rglob("*"))) for folder in folders if folder.exists())
