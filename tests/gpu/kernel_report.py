"""Measures the Triton kernel on real shapes, and prints {"facts": ..., "table": ...} as JSON."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

if TYPE_CHECKING:
    from compute.kernels.triton_measure import DeviceFigures

#: hidden, intermediate, and the experts that a token is sent to
SHAPES = {"qwen3-30b-a3b": (2048, 768, 8), "olmoe-1b-7b": (2048, 1024, 8), "mixtral-8x7b": (4096, 14336, 2)}
#: bits and number of tokens
CASES = (("8", 1), ("4", 1), ("3", 1), ("2", 1), ("4", 8), ("4", 64), ("4", 512))


def table(measure: "Callable[..., DeviceFigures]") -> Iterator[dict[str, object]]:
    for shape, (hidden, intermediate, top_k) in SHAPES.items():
        for bits, num_tokens in CASES:
            figures = measure(hidden, intermediate, bits, num_tokens=num_tokens, top_k=top_k)
            yield {"shape": shape, "bits": bits, "tokens": num_tokens, **row_of(figures)}


def row_of(figures: "DeviceFigures") -> dict[str, Any]:
    """What is told of one measurement: a layer-step's time, and packed bytes a second."""
    return {
        "us": round(figures.graph_us, 1),
        "us without a graph": round(figures.eager_us, 1),
        "GB/s": round(figures.bytes_per_s / 1e9),
        "of a copy": round(figures.share_of_copy, 3),
    }


def main() -> int:
    if torch.cuda.is_available():
        import triton

        from compute.kernels.triton_measure import measure_on_device

        facts = {
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "triton": triton.__version__,
        }
        answer = {"facts": facts, "table": list(table(measure_on_device))}
    else:
        answer = {"error": "there is no CUDA device"}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
