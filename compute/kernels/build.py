"""Compiles the package's C files, each into a library beside it: on installation, or
`python -m compute.kernels.build`.

Needs the standard library and a C compiler ($CC, else cc, gcc or clang). The code for every
instruction set is in one library, so it runs on any machine of its architecture.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("cpu.c")
LIBRARY = SOURCE.with_name("libcpu.so")
_POLICIES = SOURCE.parents[1] / "policies"
#: Every library of the package, and its source.
SOURCE_OF = {LIBRARY: SOURCE, _POLICIES / "libkeepvalue.so": _POLICIES / "keep_value.c"}

#: No contraction and no fast math: a value does not depend on where in a vector it was computed.
FLAGS = (
    *("-std=gnu11", "-O3", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)


def compile_libraries() -> str:
    """Write every library. Returns "", or the sentence that says why one could not be compiled."""
    for library, source in SOURCE_OF.items():
        if reason := compile_library(library, source):
            return reason
    return ""


def compile_library(library: Path = LIBRARY, source: Path = SOURCE) -> str:
    """Write `library`. Returns "", or the sentence that says why it could not be compiled."""
    compiler = _compiler()
    if not compiler:
        return "there is no C compiler (cc, gcc or clang, or the one that $CC names)"
    temporary = library.with_suffix(f".{os.getpid()}.tmp")
    command = [*compiler, *FLAGS, "-o", str(temporary), str(source)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{shlex.join(command)} failed: {done.stderr.strip()[:500]}"
        temporary.replace(library)
    except OSError as error:
        return f"{compiler[0]} cannot be run: {error}"
    finally:
        temporary.unlink(missing_ok=True)
    return ""


def _compiler() -> list[str]:
    """The compiler's command, empty when there is none."""
    if chosen := shlex.split(os.environ.get("CC", "")):
        return chosen if shutil.which(chosen[0]) else []
    found = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), "")
    return [found] if found else []


if __name__ == "__main__":
    sys.exit(compile_libraries())
