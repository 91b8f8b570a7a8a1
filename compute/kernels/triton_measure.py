"""What the Triton kernel reaches on a CUDA device: packed bytes a second, beside a plain copy.

Experts cycle through a pool larger than the caches. Launches are recorded as a CUDA graph, so that
the device is timed and not Python; the same calls without one tell what Python costs. Imports triton.
"""

import itertools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from compute.kernels.measure import gated_experts, gated_layout, packed_bytes
from compute.kernels.triton_kernel import Rows, TritonKernel

_LIKE = 0x2A


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """Medians of one measurement; a call is one layer-step of `num_tokens` tokens.

    `bytes_per_s` counts each expert's packed bytes once a call. `copy_bytes_per_s`: a copy within
    the device's memory, what it reads and what it writes.
    """

    name: str
    bits: str
    group: int
    num_tokens: int
    num_experts: int
    graph_us: float
    eager_us: float
    bytes_per_s: float
    copy_bytes_per_s: float

    @property
    def share_of_copy(self) -> float:
        """The kernel's bytes a second, of what a plain copy moves."""
        return self.bytes_per_s / self.copy_bytes_per_s


def measure_on_device(
    hidden: int,
    intermediate: int,
    bits: str = "4",
    group: int = 64,
    *,
    num_tokens: int = 1,
    top_k: int = 8,
    pool_bytes: int = 2**30,
    repeats: int = 9,
    device: str = "cuda",
) -> DeviceFigures:
    """Every token goes to the same `top_k` experts, which are others in every call."""
    layout = gated_layout(hidden, intermediate, bits, group)
    kernel, module = TritonKernel(layout), gated_experts()
    num_calls = max(pool_bytes // (layout.stride * top_k), 1)
    pool = torch.full((num_calls * top_k, layout.stride), _LIKE, dtype=torch.uint8, device=device)
    x = torch.randn(num_tokens, hidden, dtype=torch.bfloat16, device=device)
    weights = torch.full((num_tokens, top_k), 1 / top_k, dtype=torch.bfloat16, device=device)
    out = torch.empty(num_tokens * top_k, hidden, dtype=torch.bfloat16, device=device)
    calls = [_call(pool[at : at + top_k], x) for at in range(0, len(pool), top_k)]

    def run_all() -> None:
        for addresses, first, places in calls:
            kernel.run_group(module, addresses, first, places, x, weights, out)

    cuts = [kernel.cut(addresses, first, places, x) for addresses, first, places in calls]
    graph = _record(lambda rows: kernel.run(module, rows, x, weights, out), cuts)
    half = pool.view(-1)[: pool.numel() // 2]
    other = pool.view(-1)[pool.numel() - half.numel() :]
    arms = {"graph": graph.replay, "eager": run_all, "copy": lambda: other.copy_(half)}
    seconds = _in_turn(arms, repeats, device)
    return DeviceFigures(
        name=kernel.name,
        bits=bits,
        group=group,
        num_tokens=num_tokens,
        num_experts=top_k,
        graph_us=seconds["graph"] / num_calls * 1e6,
        eager_us=seconds["eager"] / num_calls * 1e6,
        bytes_per_s=packed_bytes(layout) * top_k * num_calls / seconds["graph"],
        copy_bytes_per_s=2 * half.numel() / seconds["copy"],
    )


def _call(blobs: Tensor, x: Tensor) -> tuple[list[int], list[int], Tensor]:
    """(addresses, first, places) of one call: rows sorted by expert, as a layer-step groups them."""
    num_experts, num_tokens = len(blobs), len(x)
    addresses = [blob.data_ptr() for blob in blobs]
    first = list(range(0, num_experts * num_tokens + 1, num_tokens))
    places = torch.arange(num_experts * num_tokens).view(num_tokens, num_experts).t().reshape(-1)
    return addresses, first, places.to(x.device)


def _record(run: Callable[[Rows], None], cuts: list[Rows]) -> torch.cuda.CUDAGraph:
    """One graph of all calls; the first call, outside of it, compiles."""
    run(cuts[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for rows in cuts:
            run(rows)
    return graph


def _in_turn(arms: Mapping[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Median seconds of each arm, on the device's clock; the first turn warms up."""
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for turn, (name, call) in itertools.product(range(repeats + 1), arms.items()):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(device)
        start.record()
        call()
        end.record()
        end.synchronize()
        if turn:
            taken[name].append(start.elapsed_time(end) / 1e3)
    return {name: statistics.median(times) for name, times in taken.items()}
