"""Python, the libraries in the versions that work, the compiled kernel, the shipped model."""

import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from compute.kernels.build import LIBRARY
from launch.doctor.finding import Finding
from launch.plan import SHIPPED_MODEL

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
_PYTHON = ((3, 11), (3, 15))
_MODEL_PARTS = ("config.json", "model.safetensors", "tokenizer.json")


def findings() -> Iterator[Finding]:
    yield python()
    yield from (distribution(name) for name in VERSIONS)
    yield compiled_kernel()
    yield shipped_model()


def python() -> Finding:
    text = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info >= _PYTHON[1]:
        return Finding("python", "warn", f"{text}, was never tried", "use Python 3.11 to 3.14")
    return Finding("python", "ok", text)


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
    names = shlex.split(os.environ.get("CC", ""))[:1] or ("cc", "gcc", "clang")
    if any(shutil.which(name) for name in names):
        fix = "python -m compute.kernels.build"
        return Finding("cpu kernel", "warn", "not compiled, torch computes meanwhile", fix)
    fix = "install gcc or clang, then python -m compute.kernels.build"
    return Finding("cpu kernel", "warn", "no C compiler, torch computes meanwhile", fix)


def shipped_model() -> Finding:
    missing = [name for name in _MODEL_PARTS if not (SHIPPED_MODEL / name).is_file()]
    if missing:
        return Finding("shipped model", "fail", f"lacks {', '.join(missing)}", "install sidestage again")
    return Finding("shipped model", "ok", str(SHIPPED_MODEL))
