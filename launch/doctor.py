"""`sidestage doctor`: what sidestage needs of this machine, looked at one by one.

Each check is a function that answers with a Finding; none changes anything that it does not put
back, and none imports torch.
"""

import json as json_text
import os
import platform
import resource
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from compute.cache_folder import cache_home
from compute.kernels.build import LIBRARY
from launch.output import check_place, write_json
from launch.plan import SHIPPED_MODEL
from loader.store_files import StoreFiles
from protocol.arena import available_memory_bytes
from protocol.errors import SidestageError
from protocol.folder import create_folder, remove_folder
from protocol.manifest import MANIFEST_FILE, Manifest
from protocol.units import format_size

#: Distribution -> first version that works, first one that was never tried (() for any).
VERSIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "torch": ((2, 10), (2, 14)),
    "transformers": ((5, 17), (6,)),
    "hqq": ((0, 2, 8), ()),
    "pyzmq": ((26,), ()),
    "msgpack": ((1, 1), ()),
    "safetensors": ((0, 5), ()),
    "xxhash": ((3, 5), ()),
}
_LEAST_MEMORY = 2 * 2**30
_LEAST_FDS = 256


@dataclass(frozen=True, slots=True)
class Finding:
    """`status` is "ok", "warn" or "fail"; `fix` says what to do about anything but "ok"."""

    name: str
    status: str
    text: str
    fix: str = ""


Check = Callable[[], Finding]


def examine(*, json: str | None, store: str | None) -> int:
    """Run every check and report; 1 if one failed. Raises ValueError for a place it cannot write to."""
    check_place("--json", json)
    findings = list(findings_of(Path(store) if store else None))
    is_healthy = all(finding.status != "fail" for finding in findings)
    if json is not None:
        write_json(json, json_text.dumps({"ok": is_healthy, "checks": [asdict(f) for f in findings]}))
    if json != "-":
        for finding in findings:
            sys.stdout.write(line_of(finding) + "\n")
    return 0 if is_healthy else 1


def findings_of(store: Path | None) -> Iterator[Finding]:
    """Every check's finding, in order."""
    yield python()
    yield from (distribution(name) for name in VERSIONS)
    for check in (
        compiled_kernel,
        processor,
        memory,
        file_descriptors,
        kernel_features,
        sockets,
        cache,
        shipped_model,
    ):
        yield check()
    if store is not None:
        yield store_integrity(store)


def line_of(finding: Finding) -> str:
    """`ok    memory: ...`, with the way to fix it behind an arrow."""
    fix = f" -> {finding.fix}" if finding.fix else ""
    return f"{finding.status:<5} {finding.name}: {finding.text}{fix}"


def python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()}, {sys.executable}")


def distribution(name: str) -> Finding:
    """Whether it is installed in a version that works, by its metadata alone."""
    first, untried = VERSIONS[name]
    wanted = ".".join(map(str, first))
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(name, "fail", "is not installed", "install sidestage again, with its dependencies")
    release = release_of(found)
    if release < first:
        return Finding(name, "fail", f"{found} is too old", f"pip install '{name}>={wanted}'")
    if untried and release >= untried:
        limit = ".".join(map(str, untried))
        return Finding(name, "warn", f"{found} was never tried", f"pip install '{name}<{limit}'")
    return Finding(name, "ok", found)


def release_of(text: str) -> tuple[int, ...]:
    """(2, 13, 0) of "2.13.0+cpu"; (0, 2, 8) of "0.2.8.post1"."""
    numbers: list[int] = []
    for part in text.partition("+")[0].split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def compiled_kernel() -> Finding:
    """Whether the CPU kernel was compiled at installation, and if not, whether it could be."""
    if LIBRARY.is_file():
        return Finding("cpu kernel", "ok", str(LIBRARY))
    names = (*shlex.split(os.environ.get("CC", ""))[:1], "cc", "gcc", "clang")
    if any(shutil.which(name) for name in names):
        fix = "python -m compute.kernels.build"
        return Finding("cpu kernel", "warn", "not compiled, torch computes meanwhile", fix)
    fix = "install gcc or clang, then python -m compute.kernels.build"
    return Finding("cpu kernel", "warn", "no C compiler, torch computes meanwhile", fix)


def processor() -> Finding:
    cores = len(os.sched_getaffinity(0))
    text = f"{platform.machine()}, {cores} cores to use"
    if platform.machine() not in ("x86_64", "AMD64"):
        fix = "it works, with completions by message instead of by shared words"
        return Finding("processor", "warn", text, fix)
    return Finding("processor", "ok", text)


def memory() -> Finding:
    free = available_memory_bytes()
    text = f"{format_size(free)} can be taken"
    if free < _LEAST_MEMORY:
        return Finding("memory", "warn", text, "close something, or pass a small --ram")
    return Finding("memory", "ok", text)


def file_descriptors() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _LEAST_FDS:
        return Finding("open files", "fail", f"at most {soft}", f"ulimit -n {_LEAST_FDS}")
    return Finding("open files", "ok", f"at most {soft}")


def kernel_features() -> Finding:
    """memfd with seals, eventfd, pidfd, and fds that travel over a Unix socket."""
    missing = [name for name, probe in _PROBES.items() if not _works(probe)]
    if missing:
        fix = "use Linux 5.14 or newer, and a container that allows these calls"
        return Finding("kernel", "fail", f"{platform.release()} lacks {', '.join(missing)}", fix)
    return Finding("kernel", "ok", f"{platform.release()}: {', '.join(_PROBES)}")


def sockets() -> Finding:
    """A folder as a loader makes it. Making one also removes what crashed processes left."""
    try:
        folder = create_folder()
    except ValueError as error:
        return Finding("sockets", "fail", str(error), "set XDG_RUNTIME_DIR to a short path of yours")
    try:
        others = [entry.name for entry in folder.parent.iterdir() if entry != folder]
    finally:
        remove_folder(folder)
    dead = sorted(name for name in others if not Path("/proc", name.partition("-")[0]).exists())
    text = f"{folder.parent}, {len(others) - len(dead)} in use"
    if dead:
        fix = "rm -r " + " ".join(str(folder.parent / name) for name in dead)
        return Finding("sockets", "warn", f"{text}, {len(dead)} left by processes that are gone", fix)
    return Finding("sockets", "ok", text)


def cache() -> Finding:
    """The folder of converted checkpoints: whole ones, and conversions that were interrupted."""
    stores = cache_home() / "stores"
    if not stores.is_dir():
        return Finding("cache", "ok", f"{stores} will be made")
    if not os.access(stores, os.W_OK):
        return Finding(
            "cache", "fail", f"{stores} cannot be written", "set XDG_CACHE_HOME to a folder of yours"
        )
    broken = sorted(folder for folder in stores.iterdir() if folder.is_dir() and not _is_whole(folder))
    num_bytes = sum(path.stat().st_size for path in stores.rglob("*") if path.is_file())
    text = f"{stores}, {format_size(num_bytes)}"
    if broken:
        fix = "the same run goes on with them; or rm -r " + " ".join(map(str, broken))
        return Finding("cache", "warn", f"{text}, {len(broken)} not whole", fix)
    return Finding("cache", "ok", text)


def shipped_model() -> Finding:
    missing = [
        n for n in ("config.json", "model.safetensors", "tokenizer.json") if not (SHIPPED_MODEL / n).is_file()
    ]
    if missing:
        return Finding("shipped model", "fail", f"lacks {', '.join(missing)}", "install sidestage again")
    return Finding("shipped model", "ok", str(SHIPPED_MODEL))


def store_integrity(store: Path) -> Finding:
    """Manifest, lengths, and every expert's bytes against its checksum."""
    name = f"store {store}"
    try:
        manifest = Manifest.read(store)
        manifest.check_shards(store)
        files = StoreFiles(store, manifest, verify=True)
        try:
            blob = np.empty(manifest.layout.stride, np.uint8)
            for key in range(manifest.num_keys):
                files.read(key, blob)
        finally:
            files.close()
    except (SidestageError, OSError) as error:
        return Finding(name, "fail", str(error), "remove it and convert again")
    size = format_size(manifest.expert_bytes_total)
    return Finding(
        name, "ok", f"{manifest.num_keys} experts, {manifest.layout.bits} bit, {size}, every checksum right"
    )


def _is_whole(store: Path) -> bool:
    if not (store / MANIFEST_FILE).is_file() or store.name.endswith(".partial"):
        return False
    try:
        Manifest.read(store).check_shards(store)
    except SidestageError:
        return False
    return True


def _works(probe: Callable[[], object]) -> bool:
    try:
        probe()
    except (OSError, AttributeError):
        return False
    return True


def _probe_memfd() -> None:
    os.close(os.memfd_create("sidestage-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))


def _probe_eventfd() -> None:
    os.close(os.eventfd(0, os.EFD_CLOEXEC))


def _probe_pidfd() -> None:
    os.close(os.pidfd_open(os.getpid()))


def _probe_passing() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        socket.send_fds(left, [b"fd"], [left.fileno()])
        os.close(socket.recv_fds(right, 2, 1)[1][0])


_PROBES: dict[str, Callable[[], object]] = {
    "memfd": _probe_memfd,
    "eventfd": _probe_eventfd,
    "pidfd": _probe_pidfd,
    "passing of fds": _probe_passing,
}
