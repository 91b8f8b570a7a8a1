"""Triton's interpreter, which computes kernels on the CPU: a process of its own, and less waiting in it.

Triton decides on import whether its kernels are interpreted, so a test file that wants them so runs
itself again; `TRITON_INTERPRET=1 pytest FILE` shows each of its tests by its name.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def run_interpreted(file: str) -> None:
    """All tests of `file`, in the interpreter; fails with what they print."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", file],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@contextmanager
def quick_calls() -> Iterator[None]:
    """The interpreter prepares triton.language anew for every call of a device function: once will do."""
    from triton.runtime import interpreter

    plain, prepared = interpreter.InterpretedFunction.__call__, set()

    def call(self: Any, *args: Any, **named: Any) -> Any:
        if self.fn.__module__ in prepared:
            return self.rewrite()(*args, **named)
        prepared.add(self.fn.__module__)
        return plain(self, *args, **named)

    interpreter.InterpretedFunction.__call__ = call
    yield
    interpreter.InterpretedFunction.__call__ = plain
