"""A client in a process of its own that demands experts as fast as they come, and checks each.

`python -P -c ... ENDPOINT STORE QUOTA TALLY SEED`: how many it got is in the tally, a file of 16
bytes: experts, and those with wrong bytes. Runs until it is stopped. Imports no torch.
"""

import random
import struct
import sys
import threading
from pathlib import Path

import xxhash

from compute.client import LoaderClient
from protocol.child import Child, Lifeline, report_ready
from protocol.manifest import Manifest


def start_eater(endpoint: str, store: Path, quota: int, tally: Path, seed: int) -> Child:
    """The process; it is in once `wait_ready` returns."""
    tests = Path(__file__).parents[1]
    code = f"import sys; sys.path.insert(0, {str(tests)!r}); from support.eater import main; main()"
    tally.write_bytes(bytes(16))
    argv = [sys.executable, "-c", code, endpoint, str(store), str(quota), str(tally), str(seed)]
    return Child.spawn(argv, name=f"eater {seed}", ready_timeout_s=60)


def eaten(tally: Path) -> tuple[int, int]:
    """(experts, those with wrong bytes)."""
    num_experts, num_wrong = struct.unpack("<2Q", tally.read_bytes())
    return num_experts, num_wrong


def main() -> None:
    endpoint, folder, quota, tally, seed = sys.argv[1:6]
    options = sys.argv[6:]
    lifeline = Lifeline(int(options[options.index("--lifeline-fd") + 1]))
    is_over = threading.Event()
    lifeline.watch(is_over.set)
    manifest = Manifest.read(Path(folder))
    rng = random.Random(int(seed))
    counts = [0, 0]
    with LoaderClient(endpoint, quota=int(quota), timeout_s=60) as client, Path(tally).open("r+b") as file:
        report_ready(int(options[options.index("--ready-fd") + 1]), {"pid": client.loader_pid})
        awaited: dict[int, int] = {}
        released: list[int] = []
        while not is_over.is_set():
            keys = [rng.randrange(manifest.num_keys) for _ in range(client.room + len(released))]
            tickets = client.fetch(demand=[(key, 0) for key in keys], released=released)
            awaited.update(zip(tickets, keys, strict=True))
            released = []
            for completion in client.wait():
                key = awaited.pop(completion.ticket)
                if completion.is_dropped:
                    continue
                counts[0] += 1
                counts[1] += xxhash.xxh3_64_intdigest(completion.blob()) != manifest.checksums[key]
                released.append(completion.ticket)
            file.seek(0)
            file.write(struct.pack("<2Q", *counts))
            file.flush()
