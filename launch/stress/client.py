"""`python -P -m launch.stress.client JOB`: one client process of a stress run, JOB as JSON.

Plays layer-steps until SIGTERM or its parent's death, lets everything on its way arrive, checks it
once more and leaves. What it counts is in its tally; its last error is on stderr.
"""

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path

from compute.client import LoaderClient
from compute.policies import named
from compute.policies.base import CacheShape
from compute.residency import Residency
from compute.transports.base import Transport
from launch.stress.job import ClientJob
from launch.stress.player import Player
from launch.stress.routing import Routing
from launch.stress.tally import Count, Tally
from protocol.child import Lifeline, report_ready
from protocol.errors import SidestageError
from protocol.manifest import Manifest

NUM_IDLE_TRIPS = 200
_SAMPLE_S = 0.5


def main() -> int:
    """Returns the exit status: 1 when it could not go on."""
    arguments = _parse()
    job = ClientJob.from_json(arguments.job)
    told_to_stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told_to_stop.set())
    Lifeline(arguments.lifeline_fd).watch(lambda: os._exit(1))
    with Tally(Path(job.tally)) as tally:
        report_ready(arguments.ready_fd, {})
        try:
            serve(job, tally, told_to_stop)
        except (SidestageError, AssertionError, RuntimeError) as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201 - for our parent
            return 1
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m launch.stress.client", description=__doc__)
    parser.add_argument("job")
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--lifeline-fd", type=int, required=True)
    return parser.parse_args()


def serve(job: ClientJob, tally: Tally, told_to_stop: threading.Event) -> None:
    """Come in, play until told to stop, leave. Raises SidestageError when it cannot go on."""
    import torch  # noqa: F401 - what it opens for itself is not ours to count

    fds_before = _num_fds()
    client = LoaderClient(job.endpoint, quota=job.quota, timeout_s=job.timeout_s)
    try:
        _measure_idle_trips(client, tally)
        _play(job, client, tally, told_to_stop)
    finally:
        client.close()
    tally[Count.LEAKED_FDS] += max(_num_fds() - fds_before, 0)


def _measure_idle_trips(client: LoaderClient, tally: Tally) -> None:
    """How long a demand takes that only has to be leased: the key is in a frame already."""
    for _ in range(NUM_IDLE_TRIPS):
        started_ns = time.monotonic_ns()
        client.fetch(demand=[(0, 0)])
        (completion,) = client.wait()
        tally.note_idle_trip(time.monotonic_ns() - started_ns)
        if completion.is_dropped:
            return  # its bytes are bad just now
        client.release([completion.ticket])


def _play(job: ClientJob, client: LoaderClient, tally: Tally, told_to_stop: threading.Event) -> None:
    manifest = Manifest.read(Path(job.store))
    transport = _transport(job, client)
    player = Player(
        transport,
        _residency(job, manifest),
        _routing(job, manifest),
        manifest,
        tally,
        compute_s=job.compute_s,
        blob_ns=manifest.layout.stride * 10**9 // job.link if job.link else 0,
    )
    link = _LinkSamples(transport, client, tally)
    tally[Count.READY] = 1
    try:
        while not told_to_stop.is_set():
            player.step()
            link.sample()
        link.sample(at_once=True)
        player.finish()
    except BaseException:
        tally[Count.LOST] += max(player.num_coming, 1)
        raise
    finally:
        transport.close()


def _transport(job: ClientJob, client: LoaderClient) -> Transport:
    if job.arrangement == "direct":
        from compute.transports.direct import DirectTransport

        return DirectTransport(client, num_slots=job.slots, num_transit=0)
    from compute.transports.emulated import EmulatedTransport

    return EmulatedTransport(client, num_slots=job.slots, num_transit=0, rate=job.link)


def _residency(job: ClientJob, manifest: Manifest) -> Residency:
    """With lru, whatever runs take: it learns nothing and keeps every newcomer, so that each miss of the
    drawn routing is a transfer into a slot, and there are no transit slots."""
    shape = CacheShape(manifest.num_layers, manifest.num_experts, manifest.top_k, job.slots)
    return Residency(job.slots, manifest.top_k, named("lru", shape))


def _routing(job: ClientJob, manifest: Manifest) -> Routing:
    return Routing(manifest.num_layers, manifest.num_experts, manifest.top_k, job.seed, job.lookahead)


class _LinkSamples:
    """Adds to the tally, now and then, how long the link was open and busy since the last look."""

    def __init__(self, transport: Transport, client: LoaderClient, tally: Tally) -> None:
        self._transport = transport
        self._client = client
        self._tally = tally
        self._seen = {"link_busy_ns": 0, "link_open_ns": 0}
        self._num_renewals = 0
        self._next_at = 0.0
        self._take(counts=False)  # what went before the first step does not count

    def sample(self, *, at_once: bool = False) -> None:
        if at_once or time.monotonic() >= self._next_at:
            self._take(counts=True)

    def _take(self, *, counts: bool) -> None:
        self._next_at = time.monotonic() + _SAMPLE_S
        stats = self._transport.stats()
        for name, count in (("link_busy_ns", Count.LINK_BUSY_NS), ("link_open_ns", Count.LINK_OPEN_NS)):
            value = stats.get(name, 0)
            self._tally[count] += (value - self._seen[name]) if counts else 0
            self._seen[name] = value
        self._tally[Count.RENEWALS] += self._client.num_renewals - self._num_renewals
        self._num_renewals = self._client.num_renewals


def _num_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


if __name__ == "__main__":
    sys.exit(main())
