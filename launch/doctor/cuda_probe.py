"""The doctor's child: opens the CUDA device, measures, and prints one JSON object.

`python -P -m launch.doctor.cuda_probe`. {"error": sentence} when something cannot be measured.
"""

import json
import sys
from dataclasses import asdict

import torch

from compute.kernels.measure import gated_layout
from compute.kernels.triton_choice import open_kernel
from compute.link_probe import measure_link
from compute.transports.cuda_driver import CudaDriver
from protocol.errors import SidestageError

#: Width and inner width of an expert.
_SHAPE = (2048, 768)


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
    return {**told, "kernels": _kernels()}


def _kernels() -> str:
    """How fast the kernel reads experts out of the device's memory, in one sentence."""
    kernel = open_kernel(gated_layout(*_SHAPE, "4", 64), "cuda")
    if isinstance(kernel, str):
        return f"torch multiplies experts: {kernel}"
    from compute.kernels.triton_measure import measure_on_device

    figures = measure_on_device(*_SHAPE)
    return (
        f"triton, one token of Qwen3-30B-A3B's shape at 4 bit: {figures.graph_us:.0f} us a layer, "
        f"{figures.bytes_per_s / 1e9:.0f} GB/s, {figures.share_of_copy:.0%} of a plain copy"
    )


if __name__ == "__main__":
    sys.exit(main())
