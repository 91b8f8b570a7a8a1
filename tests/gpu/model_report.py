"""Makes the store and the checkpoint that the report's benchmarks run, and prints {"facts": ...} as JSON.

`model_report.py SHAPE LAYERS`. They stay in sidestage's cache folder; where that lies on a slow disk,
XDG_CACHE_HOME=/dev/shm/sidestage keeps them in memory.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from compute.cuda_presence import has_cuda
from launch.bench.config import BenchConfig
from launch.bench.folders import checkpoint_of, store_of


def made(make: Callable[[], Path]) -> str:
    """What was made, how large it is, and how long it took."""
    started_s = time.perf_counter()
    folder = make()
    lasted_s = time.perf_counter() - started_s
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    return f"{folder}, {num_bytes / 1e9:.1f} GB in {lasted_s:.0f} s"


def report(shape: str, num_layers: int) -> dict[str, object]:
    config = BenchConfig(shape=shape, layers=num_layers)
    facts = {"store": made(lambda: store_of(config)[0]), "checkpoint": made(lambda: checkpoint_of(config))}
    return {"facts": facts}


def main() -> int:
    shape, num_layers = sys.argv[1], int(sys.argv[2])
    answer = report(shape, num_layers) if has_cuda() else {"error": "there is no CUDA device"}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
