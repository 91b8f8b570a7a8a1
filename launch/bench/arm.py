"""One arm's process: a job on stdin, then one measured segment for each line that follows.

`python -P -m launch.bench.arm`. Each answer is a line of JSON on stdout: {"ready": {...}} once,
{"segment": {...}} for each number of a segment on stdin, {"error": "sentence"} at the end of a
process that cannot go on. Ends with its stdin.
"""

import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, TextIO

from launch.bench.job import ArmJob
from protocol.errors import SidestageError

if TYPE_CHECKING:
    from launch.bench.rehearsal import Rehearsal


def main() -> int:
    """Serve until stdin ends; 1 after an error."""
    answers = _claim_stdout()
    try:
        with ExitStack() as opened:
            rehearsal = _rehearsal(ArmJob.from_json(sys.stdin.readline()), opened)
            _say(answers, {"ready": rehearsal.facts()})
            for number in _numbers():
                _say(answers, {"segment": rehearsal.run(number)})
    except (SidestageError, ValueError) as error:
        _say(answers, {"error": str(error)})
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - told to the parent in a sentence; the trace goes to stderr
        traceback.print_exc()
        _say(answers, {"error": f"{type(error).__name__}: {_first_line(error)}"})
        return 1
    return 0


def _rehearsal(job: ArmJob, opened: ExitStack) -> "Rehearsal":
    from launch.bench.rehearsal import Rehearsal

    return Rehearsal(job, opened)


def _claim_stdout() -> TextIO:
    """stdout for answers alone; whatever else is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _numbers() -> Iterator[int]:
    while line := sys.stdin.readline():
        yield int(line)


def _say(answers: TextIO, answer: dict[str, object]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no words").splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
