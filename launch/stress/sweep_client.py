"""`python -P -m launch.stress.sweep_client SECONDS JOB...`: plays one job after the other, in one process."""

import argparse
import os
import sys
import threading
from pathlib import Path

from launch.stress.client import serve
from launch.stress.job import ClientJob
from launch.stress.tally import Tally
from protocol.child import Lifeline, report_ready


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m launch.stress.sweep_client", description=__doc__)
    parser.add_argument("seconds", type=float)
    parser.add_argument("jobs", nargs="+")
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--lifeline-fd", type=int, required=True)
    arguments = parser.parse_args()
    Lifeline(arguments.lifeline_fd).watch(lambda: os._exit(1))
    report_ready(arguments.ready_fd, {})
    for text in arguments.jobs:
        job = ClientJob.from_json(text)
        is_over = threading.Event()
        timer = threading.Timer(arguments.seconds, is_over.set)
        timer.start()
        with Tally(Path(job.tally)) as tally:
            serve(job, tally, is_over)
        timer.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
