"""Finds what a test run of ours could leave: processes, socket folders, arenas.

A process is ours if it is a child, or if it inherited this session's private runtime folder in
its environment (so that an orphan is found too).
"""

import gc
import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Leftovers:
    """`runtime_folder` is where this session's socket folders go, and the mark of its processes."""

    runtime_folder: Path

    def look(self) -> set[str]:
        """Everything of ours that exists now, one readable line each."""
        return self._processes() | self._folders() | self._arenas()

    def wait_until_only(self, allowed: set[str], timeout_s: float) -> set[str]:
        """What is there beyond `allowed`, after giving it `timeout_s` to go."""
        deadline = time.monotonic() + timeout_s
        left = self.look() - allowed
        while left and time.monotonic() < deadline:
            gc.collect()
            time.sleep(0.02)
            left = self.look() - allowed
        return left

    def _processes(self) -> set[str]:
        children = {child.pid for child in psutil.Process().children(recursive=True)}
        strangers = {pid for pid in _pids() if self._is_marked(pid)}
        return {_described(pid) for pid in children | strangers}

    def _is_marked(self, pid: int) -> bool:
        mark = f"XDG_RUNTIME_DIR={self.runtime_folder}".encode()
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False  # gone, or another user's
        return pid != os.getpid() and mark in environment.split(b"\0")

    def _folders(self) -> set[str]:
        return {f"folder {path}" for path in self.runtime_folder.glob("sidestage/*")}

    def _arenas(self) -> set[str]:
        found: set[str] = set()
        for fd in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{fd}")
            except OSError:
                continue  # the fd of this very listing
            if target.startswith("/memfd:sidestage"):
                found.add(f"fd {fd} -> {target}")
        return found


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _described(pid: int) -> str:
    try:
        command = " ".join(psutil.Process(pid).cmdline())
    except psutil.NoSuchProcess:
        return f"process {pid} (gone)"
    return f"process {pid} ({command[:120] or 'zombie'})"
