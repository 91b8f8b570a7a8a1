"""The doctor's child: opens the CUDA device, measures, and prints one JSON object.

`python -P -m launch.doctor.cuda_probe`. {"error": sentence} when something cannot be measured.
"""

import json
import sys
from dataclasses import asdict

import torch

from compute.link_probe import measure_link
from compute.transports.cuda_driver import CudaDriver
from protocol.errors import SidestageError


def main() -> int:
    sys.stdout.write(json.dumps(facts()) + "\n")
    return 0


def facts() -> dict[str, object]:
    """What there is and how fast it is."""
    if not torch.cuda.is_available():
        return {"error": "torch does not see the device: its CUDA version may be newer than the driver"}
    try:
        driver = CudaDriver()
        told = {"name": driver.name, "cuda": torch.version.cuda, **asdict(measure_link(driver))}
    except (SidestageError, torch.OutOfMemoryError) as error:
        return {"error": str(error)}
    return told


if __name__ == "__main__":
    sys.exit(main())
