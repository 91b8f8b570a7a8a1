"""A client in a process of its own: `python -m support.lessee ENDPOINT QUOTA KEY...`.

Demands the keys, waits for them, reports {"client", "tickets", "words"} and sleeps on its leases
until it is killed.
"""

import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from support.loader_process import WireClient

from protocol.child import Child, Lifeline, report_ready


def start_lessee(endpoint: str, quota: int, keys: Sequence[int]) -> Child:
    """The process; `wait_ready` gives its report."""
    tests = Path(__file__).parents[1]
    code = f"import sys; sys.path.insert(0, {str(tests)!r}); from support.lessee import main; main()"
    argv = [sys.executable, "-c", code, endpoint, str(quota), *map(str, keys)]
    return Child.spawn(argv, name="the lessee")


def main() -> None:
    arguments = sys.argv[1:]
    lifeline = Lifeline(int(arguments[arguments.index("--lifeline-fd") + 1]))
    ready_fd = int(arguments[arguments.index("--ready-fd") + 1])
    keys = [int(key) for key in arguments[2 : arguments.index("--ready-fd")]]
    client = WireClient(arguments[0], int(arguments[1]))
    tickets = client.demand(*keys)
    for ticket in tickets:
        assert client.wait(ticket) is not None
    words = [client.word(ticket) for ticket in tickets]
    report_ready(ready_fd, {"client": client.number, "tickets": tickets, "words": words})
    done = threading.Event()
    lifeline.watch(done.set)
    done.wait()
