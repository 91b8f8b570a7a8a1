"""The scene of a stress run: a store, a loader with its keeper, and clients in their seats.

Owns every process and file, brings back whoever dies, and counts what it did not kill itself.
Knows nothing of when or why something is broken.
"""

import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil

from compute.loader_process import OwnedLoader
from launch.keeper import Keeper
from launch.stress.config import StressConfig
from launch.stress.job import ClientJob
from launch.stress.memory import Sample
from launch.stress.recovery import RecoveryClock
from launch.stress.synthetic_store import make_store
from launch.stress.tally import Count, Tally
from loader.faults import FaultBoard
from protocol.arena import ArenaGeometry
from protocol.child import Child

NUM_LAYERS = 4
TOP_K = 4
STRIDE_KIB = 64
SLOTS = 32
LOOKAHEAD = 4
#: Frames that an emulated client may hold or await.
EMULATED_QUOTA = 24
#: Frames beyond the quotas: one for a visitor who talks nonsense, the rest are host cache.
SPARE_FRAMES = 8
#: A loader that stands still for half of this is replaced.
KEEPER_TIMEOUT_S = 4.0
#: How long a client waits for its loader; far longer than any recovery may take.
CLIENT_TIMEOUT_S = 60.0
READY_TIMEOUT_S = 120.0

_log = logging.getLogger("sidestage.stress")


class Seat:
    """One client process at a time, and its tally."""

    def __init__(self, number: int, job: ClientJob) -> None:
        self.number = number
        self.num_respawns = 0
        self.num_lost = 0
        self.tally = Tally.create(Path(job.tally))
        #: Every process that ever sat here.
        self.processes: list[psutil.Process] = []
        self._job = job
        self._was_killed = False
        self._child = self._spawn()

    @property
    def is_ready(self) -> bool:
        """Its client is playing."""
        return self._child.poll() is None and self.tally[Count.READY] == 1

    @property
    def pid(self) -> int:
        return self._child.pid

    def kill(self) -> None:
        """A fault on purpose."""
        self._was_killed = True
        self.tally[Count.READY] = 0
        self._child.send_signal(signal.SIGKILL)

    def look(self) -> None:
        """Bring back a client that has died; one that we did not kill is lost."""
        if self._child.poll() is None:
            return
        if not self._was_killed:
            self._note_loss()
        self._child.close()
        self.num_respawns += self._was_killed
        self._was_killed = False
        self.tally[Count.READY] = 0
        self._job = replace(self._job, seed=self._job.seed + 1000)
        self._child = self._spawn()

    def ask_to_leave(self) -> None:
        self._child.send_signal(signal.SIGTERM)

    @property
    def has_left(self) -> bool:
        return self._child.poll() is not None

    def close(self, timeout_s: float) -> None:
        """The client leaves, if need be by force; then it is lost."""
        status = self._child.wait(timeout_s)
        came_too_late = status == -signal.SIGTERM and not self.tally[Count.READY]
        if status != 0 and not (self._was_killed or came_too_late):
            self._note_loss()
        self._child.close(timeout_s=0.0)

    def _note_loss(self) -> None:
        self.num_lost += 1
        _log.error("client %d is lost: %s", self.number, self._child.stderr_tail()[-1000:] or "no word of it")

    def _spawn(self) -> Child:
        argv = [sys.executable, "-P", "-m", "launch.stress.client", self._job.to_json()]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        child = Child.spawn(argv, name=f"client {self.number}", env=env)
        self.processes.append(psutil.Process(child.pid))
        return child


class Scene:
    """Open after construction. `store` and everything else lies in one temporary folder."""

    def __init__(self, config: StressConfig) -> None:
        self.num_lost_loaders = 0
        self.recovery = RecoveryClock()
        self.loader_processes: list[psutil.Process] = []
        self._killed: set[int] = set()
        self._pids: set[int] = set()
        with ExitStack() as opened:
            self.folder = Path(tempfile.mkdtemp(prefix="sidestage-stress-"))
            opened.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self.store = self.folder / "store"
            num_experts = max(32, 24 * config.clients)
            self.manifest = make_store(
                self.store, NUM_LAYERS, num_experts, TOP_K, STRIDE_KIB, seed=config.seed
            )
            self.board = opened.enter_context(FaultBoard.create(self.folder / "board"))
            quota = SLOTS if config.arrangement == "direct" else EMULATED_QUOTA
            self.loader = opened.enter_context(self._start_loader(config.clients, quota))
            self.keeper = Keeper(self.loader, KEEPER_TIMEOUT_S)
            self._note_loader()
            #: The loader's own fds, before anybody has come.
            self.num_loader_fds = self._count_loader_fds()
            self.seats: list[Seat] = []
            opened.callback(self._close_tallies)
            opened.callback(self._close_seats, 0.0)
            self._fill_seats(config, quota)
            self._opened = opened.pop_all()

    @property
    def is_lively(self) -> bool:
        """Loader and clients are all there and at work."""
        return self.loader.is_alive and all(seat.is_ready for seat in self.seats)

    def signal_loader(self, number: int) -> None:
        """A fault on purpose."""
        if self.loader.is_alive:
            self._killed.add(self.loader.pid)
            self.recovery.hit(time.monotonic(), self.loader.num_restarts)
            os.kill(self.loader.pid, number)

    def look(self) -> None:
        """Bring back whoever has died or hangs. Raises LoaderLostError when that is in vain."""
        if not self.loader.is_alive and self.loader.pid not in self._killed:
            self.num_lost_loaders += 1
            self._killed.add(self.loader.pid)
            _log.error("the loader (pid %d) died of itself", self.loader.pid)
        self.keeper.look(time.monotonic())
        self._note_loader()
        transfers = sum(seat.tally[Count.TRANSFERS] for seat in self.seats)
        self.recovery.look(time.monotonic(), self.loader.num_restarts, transfers)

    def look_after_clients(self) -> None:
        for seat in self.seats:
            seat.look()

    def dismiss(self, timeout_s: float) -> None:
        """Every client takes what is on its way, and leaves; the loader is kept alive meanwhile."""
        for seat in self.seats:
            seat.ask_to_leave()
        until = time.monotonic() + timeout_s
        while time.monotonic() < until and not all(seat.has_left for seat in self.seats):
            self.look()
            time.sleep(0.02)
        self._close_seats(0.1)

    def leaked_loader_fds(self, timeout_s: float = 3.0) -> int:
        """Fds that the loader has beyond those it began with, once everybody has left."""
        until = time.monotonic() + timeout_s
        while (leaked := self._count_loader_fds() - self.num_loader_fds) > 0 and time.monotonic() < until:
            time.sleep(0.05)
        return max(leaked, 0)

    def memory(self) -> Sample:
        """Of those who live now."""
        clients = max(_rss(seat.processes[-1]) for seat in self.seats)
        return Sample(_rss(psutil.Process()), _rss(self.loader_processes[-1]), clients)

    def close(self) -> None:
        """Stop everybody, remove everything."""
        self._opened.close()

    def processes(self) -> list[psutil.Process]:
        """Everyone who ever lived here."""
        return [*self.loader_processes, *(p for seat in self.seats for p in seat.processes)]

    def _start_loader(self, num_clients: int, quota: int) -> OwnedLoader:
        num_frames = num_clients * quota + SPARE_FRAMES
        geometry = ArenaGeometry.for_frames(num_frames, self.manifest.layout.stride, num_clients + 2)
        options = ["--store", os.fspath(self.store), "--faults", os.fspath(self.folder / "board")]
        return OwnedLoader(geometry, options, CLIENT_TIMEOUT_S)

    def _note_loader(self) -> None:
        if self.loader.pid not in self._pids and self.loader.is_alive:
            self._pids.add(self.loader.pid)
            self.loader_processes.append(psutil.Process(self.loader.pid))

    def _count_loader_fds(self) -> int:
        return len(os.listdir(f"/proc/{self.loader.pid}/fd"))

    def _fill_seats(self, config: StressConfig, quota: int) -> None:
        link = config.link if config.arrangement == "emulated" else None
        step_s = TOP_K * self.manifest.layout.stride / link if link else 0.001
        for number in range(config.clients):
            job = ClientJob(
                endpoint=self.loader.endpoint,
                store=os.fspath(self.store),
                tally=os.fspath(self.folder / f"tally-{number}"),
                arrangement=config.arrangement,
                link=link,
                slots=SLOTS,
                quota=quota,
                lookahead=LOOKAHEAD,
                compute_s=step_s / 4,
                seed=config.seed + number,
                timeout_s=CLIENT_TIMEOUT_S,
            )
            self.seats.append(Seat(number, job))

    def _close_tallies(self) -> None:
        for seat in self.seats:
            seat.tally.close()

    def _close_seats(self, timeout_s: float) -> None:
        for seat in self.seats:
            seat.close(timeout_s)


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
