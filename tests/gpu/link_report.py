"""Measures the link and the transport over it, and prints {"facts": ..., "table": ...} as JSON."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from support.link_race import transport_speed

from compute.link_probe import measure_link
from compute.transports.cuda_driver import CudaDriver, has_cuda
from compute.transports.driver import Driver

#: Experts at 4 bit: Qwen3-30B-A3B, OLMoE, gpt-oss-20b.
BLOBS = {"qwen3-30b-a3b": 2_654_208, "olmoe-1b-7b": 3_538_944, "gpt-oss-20b": 13_996_032}
_PASSED_BYTES = 3 * 2**30


def report(
    driver: Driver, passed_bytes: int = _PASSED_BYTES, blobs: dict[str, int] = BLOBS
) -> dict[str, object]:
    speeds = measure_link(driver)
    table = []
    for name, blob_bytes in blobs.items():
        aligned = -(-blob_bytes // 4096) * 4096
        reached = transport_speed(driver, aligned, max(passed_bytes // aligned, 1))
        share = round(reached / speeds.best, 3)
        table.append({"blob": name, "bytes": aligned, "GB/s": round(reached / 1e9, 2), "of the best": share})
    return {"facts": {"device": driver.name, **asdict(speeds)}, "table": table}


def main() -> int:
    answer = report(CudaDriver()) if has_cuda() else {"error": "there is no CUDA device"}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
