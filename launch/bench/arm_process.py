"""The parent's side of one arm: starts its process, asks for segments, tells what it answered."""

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from tempfile import TemporaryFile
from types import TracebackType
from typing import Self

from launch.bench.job import ArmJob
from protocol.errors import SidestageError

#: How long an arm may take for one answer unless told otherwise: models are opened in this time too.
ANSWER_TIMEOUT_S = 1800.0
_STOP_TIMEOUT_S = 20.0

Answer = dict[str, object]


class ArmError(SidestageError):
    """An arm could not go on; the sentence says why."""


class ArmProcess:
    """One arm, which opens its model from the beginning on, until `close`."""

    def __init__(self, job: ArmJob) -> None:
        self.job = job
        self._stderr = TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "launch.bench.arm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=_environment(job),
        )
        self._unread = b""
        self._say(job.to_json())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def facts(self) -> Answer:
        """What the arm tells of itself, once its model is there. Raises ArmError."""
        return self._answer("ready")

    def segment(self, number: int) -> Answer:
        """Run segment `number`. Raises ArmError."""
        self._say(str(number))
        return self._answer("segment")

    def close(self) -> None:
        """End the process: by the end of its stdin, then by force. Idempotent."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has gone already
            process.stdin.close()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        self._stderr.close()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its answer, or its end, will tell
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def _answer(self, wanted: str) -> Answer:
        answer = json.loads(self._read_line())
        if wanted not in answer:
            raise ArmError(str(answer.get("error")))
        found: Answer = answer[wanted]
        return found

    def _read_line(self) -> bytes:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            ready, _, _ = select.select([fd], [], [], ANSWER_TIMEOUT_S)
            if not ready:
                raise ArmError(
                    f"no answer within {ANSWER_TIMEOUT_S:.0f} s: pass fewer --layers, --pp or --tg"
                )
            if not (more := os.read(fd, 1 << 16)):
                raise ArmError(self._last_words())
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _last_words(self) -> str:
        """Why it died, as far as it said so."""
        code = self._process.wait(_STOP_TIMEOUT_S)
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        why = f"killed by signal {-code}, perhaps for its memory" if code < 0 else f"exit code {code}"
        return f"its process ended ({why})" + (f": {lines[-1]}" if lines else "")


def _environment(job: ArmJob) -> Mapping[str, str]:
    """No GPU unless asked for, no chatter, threads that sleep where they would spin beside other arms."""
    threads = {} if job.threads is None else {"OMP_NUM_THREADS": str(job.threads)}
    return {
        **os.environ,
        **({} if job.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}),
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),
        **threads,
    }
