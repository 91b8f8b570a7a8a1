"""The compute process as its supervisor sees it: a child, a pipe for the Job, a pipe for the answer.

Starts importing at once and gets its Job later. Its stdout is nobody's: what it says meanwhile
(text, or a server's events) has an fd of its own, so that no library can write between the words.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Self

from launch.job import Job
from protocol.child import Child
from protocol.errors import SidestageError

#: Idle OpenMP threads that spin take the core from the loader's readers.
_PASSIVE_WAITS = {"OMP_WAIT_POLICY": "PASSIVE"}
_CHUNK_BYTES = 65536
#: What `sidestage run` runs: one prompt, to its end.
_ONE_PROMPT = ("launch.generate",)


class ComputeProcess:
    """One child that does one job. A context manager: leaving stops it."""

    def __init__(self, text_fd: int, program: Sequence[str] = _ONE_PROMPT) -> None:
        """Start `program`, a module and its arguments; it writes to `text_fd`, which stays the caller's."""
        self._answer = bytearray()
        self.has_ended = False
        with ExitStack() as opened:
            job_read, self._job_fd = os.pipe()
            opened.callback(self._close_job)
            self._answer_fd, answer_write = os.pipe()
            opened.callback(os.close, self._answer_fd)
            try:
                self._child = opened.enter_context(_spawn(program, job_read, answer_write, text_fd))
            finally:
                os.close(job_read)
                os.close(answer_write)
            self._opened = opened.pop_all()

    def send(self, job: Job) -> None:
        """Tell it what to do, once."""
        data = job.to_json().encode()
        try:
            with os.fdopen(self._job_fd, "wb") as pipe:
                pipe.write(data)
        except BrokenPipeError:
            return  # it has died; `result` says how
        finally:
            self._job_fd = -1

    def fileno(self) -> int:
        """Readable when there is more of the answer, or its end."""
        return self._answer_fd

    def read(self) -> None:
        """Take in a part of the answer; call when `fileno()` is readable."""
        part = os.read(self._answer_fd, _CHUNK_BYTES)
        self._answer += part
        self.has_ended = not part

    def drain(self) -> None:
        """Let the current token end, then stop generating."""
        self._child.send_signal(signal.SIGINT)

    def result(self) -> dict[str, object]:
        """What it answered, after its end.

        Raises SidestageError with its sentence, or saying how it died; KeyboardInterrupt when it
        was interrupted before there was anything to report.
        """
        status = self._child.wait(timeout_s=30.0)
        try:
            answer = json.loads(self._answer)
        except ValueError:
            raise SidestageError(_obituary(status)) from None
        match answer:
            case {"result": dict() as result}:
                return result
            case {"interrupted": _}:
                raise KeyboardInterrupt
            case {"error": str() as text}:
                raise SidestageError(text)
        raise SidestageError(f"the compute process answered {answer!r}")

    def close(self) -> None:
        """Kill it if it still lives. Idempotent."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._child.stop(timeout_s=0.0)
        self.close()

    def _close_job(self) -> None:
        if self._job_fd >= 0:
            os.close(self._job_fd)


def _spawn(program: Sequence[str], job_fd: int, answer_fd: int, text_fd: int) -> Child:
    argv = [sys.executable, "-P", "-m", *program]
    for name, fd in (("job", job_fd), ("answer", answer_fd), ("text", text_fd)):
        argv += [f"--{name}-fd", str(fd)]
    return Child.spawn(
        argv,
        name="the compute process",
        pass_fds=(job_fd, answer_fd, text_fd),
        env={**_PASSIVE_WAITS, **os.environ},
        ready_timeout_s=None,
        inherit_stderr=True,
    )


def _obituary(status: int | None) -> str:
    if status is None:
        return "the compute process does not end although it has closed its pipe"
    if status < 0:
        memory = ": is the machine out of memory?" if -status == signal.SIGKILL else ""
        return f"the compute process was killed by {signal.Signals(-status).name}{memory}"
    return f"the compute process ended with status {status} and no result"
