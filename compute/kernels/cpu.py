"""The CPU kernel: quantized experts read as they lie in their blobs, by the compiled cpu.c.

Owns the way from tensors to C, and the choice between one call (up, activation, down) and two with
the module's own gate between them. Products are float32 and outputs are rounded once, so rows in
bfloat16 come out closer to exact than torch's. A row's output does not depend on the rows beside
it, on threads or on addresses. One instance serves one thread at a time; knows no slots.
"""

import weakref
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from compute.kernels.base import Integers
from compute.kernels.binding import ISAS, TYPES, Call, best_isa, library, matrix_of
from compute.kernels.fusible import Experts, fused_activation, has_post_norm
from protocol.blob import CODE_PLANES, BlobLayout

GROUPS = (16, 32, 64, 128, 256, 512, 1024)
#: How activations are multiplied: rounded to 16 bits within each group of K (relative error of an
#: expert about 3e-5, and the faster one), or as they are (about 1e-6).
VARIANTS = ("int16", "fp32")

_NATIVE = {getattr(torch, name): TYPES[name] for name in ("float32", "bfloat16")}
_READABLE = {getattr(torch, name): number for name, number in TYPES.items()}


class CpuKernel:
    """Runs any expert of one quantized layout.

    `threads`: None for as many as torch uses. They are the library's own, and asleep between calls.
    Raises ValueError for a layout, a variant or an instruction set that it cannot run, and where
    cpu.c is not compiled.
    """

    def __init__(
        self, layout: BlobLayout, *, variant: str = "int16", isa: str = "", threads: int | None = None
    ) -> None:
        _check(layout, variant, isa)
        found = library()
        if isinstance(found, str):
            raise ValueError(f"there is no cpu kernel here, use the reference kernel: {found}")
        isa = isa or best_isa()
        self.name = f"cpu-{variant}-{isa}"
        self._threads = threads
        self._library = found
        self._context = found.sidestage_open(ISAS.index(isa))
        if not self._context:
            raise ValueError(f"this machine does not run {isa} code: use {best_isa()}")
        self._finalizer = weakref.finalize(self, found.sidestage_close, self._context)
        names = [segment.name for segment in layout.segments]
        has_gate = "gate_up_proj.scale" in names
        self._call = Call(
            up=matrix_of(layout, "gate_up_proj" if has_gate else "up_proj"),
            down=matrix_of(layout, "down_proj"),
            variant=VARIANTS.index(variant),
            has_gate=has_gate,
        )
        self._activations: weakref.WeakKeyDictionary[nn.Module, int | None] = weakref.WeakKeyDictionary()
        self._reserve(16)

    def __call__(self, module: nn.Module, blob: Tensor, rows: Tensor) -> Tensor:
        """[n, H] from `rows` [n, H]; see `ExpertKernel`."""
        assert blob.is_cpu and rows.is_cpu, "the cpu kernel reads the memory of the CPU"
        return self.run_rows(module, [blob.data_ptr()], [0, len(rows)], rows)

    def run_rows(self, module: nn.Module, addresses: Integers, first: Integers, rows: Tensor) -> Tensor:
        """[R, H] from `rows` [R, H] sorted by expert, before the routing weights.

        Expert e, whose blob is at addresses[e], has the rows from first[e] to first[e + 1].
        """
        activation = self._activation(module)
        if activation is not None:
            x = _native(rows)
            out = torch.empty((len(x), self._call.down.num_rows), dtype=x.dtype)
            self._describe(addresses, first, x, out)
            self._run(activation)
            return out.to(rows.dtype)
        experts = cast(Experts, module)
        proj = self._project(addresses, first, rows, is_down=False)
        inner = experts._apply_gate(proj) if experts.has_gate else experts.act_fn(proj)
        out = self._project(addresses, first, inner, is_down=True)
        return experts.post_expert_norm(out) if has_post_norm(module) else out

    def run_group(
        self,
        module: nn.Module,
        addresses: Integers,
        first: Integers,
        places: Tensor,
        hidden: Tensor,
        weights: Tensor,
        out: Tensor,
    ) -> None:
        """Several experts of one layer-step; their weighted rows are written to their places in `out`.

        hidden [T, H]; weights [T, K]; out [T * K, H], contiguous, in the promoted dtype of both; places
        int64 [R]. Row i reads token places[i] // K and becomes out[places[i]]; an expert's rows as in
        `run_rows`. Bit for bit `run_rows`, then torch's product with the weights.
        """
        activation = self._activation(module)
        if activation is None or hidden.dtype not in _NATIVE or out.dtype not in _NATIVE:
            rows = self.run_rows(module, addresses, first, hidden[places // weights.shape[1]])
            out[places] = rows * weights.reshape(-1, 1)[places]
            return
        assert places.dtype == torch.int64 and places.shape[0] == first[-1]
        x, places, weights = hidden.contiguous(), places.contiguous(), weights.contiguous()
        self._describe(addresses, first, x, out)
        call = self._call
        call.top_k, call.weights_type = weights.shape[1], _READABLE[weights.dtype]
        call.places, call.weights = places.data_ptr(), weights.data_ptr()
        self._run(activation)

    def read(self, memory: Tensor) -> None:
        """Read every byte of a uint8 tensor with one thread and do nothing with it: a yardstick."""
        self._library.sidestage_read(self._context, memory.data_ptr(), memory.numel())

    def _activation(self, module: nn.Module) -> int | None:
        """The number of the activation, if C can run the module from end to end."""
        try:
            return self._activations[module]
        except KeyError:
            self._activations[module] = found = fused_activation(module)
            return found

    def _project(self, addresses: Integers, first: Integers, rows: Tensor, *, is_down: bool) -> Tensor:
        """[R, N] in the rows' dtype: one matrix of every expert, with its bias."""
        matrix = self._call.down if is_down else self._call.up
        x = _native(rows)
        out = torch.empty((len(x), matrix.num_rows), dtype=x.dtype)
        self._describe(addresses, first, x, out)
        self._done(self._library.sidestage_project(self._context, self._call, is_down))
        return out.to(rows.dtype)

    def _describe(self, addresses: Integers, first: Integers, x: Tensor, out: Tensor) -> None:
        """All of a call but its activation; rows are their own places until told otherwise."""
        call, num_experts = self._call, len(addresses)
        assert len(first) == num_experts + 1 and out.is_contiguous()
        if num_experts > len(self._addresses):
            self._reserve(num_experts)
        self._addresses[:num_experts] = addresses
        self._first[: num_experts + 1] = first
        call.num_experts, call.num_tokens, call.top_k = num_experts, x.shape[0], 1
        call.x_type, call.out_type = _NATIVE[x.dtype], _NATIVE[out.dtype]
        call.threads = self._threads or torch.get_num_threads()
        call.x, call.out = x.data_ptr(), out.data_ptr()
        call.places = call.weights = None

    def _reserve(self, num_experts: int) -> None:
        """Room for the addresses of so many experts."""
        self._addresses = np.zeros(num_experts, np.int64)
        self._first = np.zeros(num_experts + 1, np.int64)
        self._call.blobs, self._call.first = self._addresses.ctypes.data, self._first.ctypes.data

    def _run(self, activation: int) -> None:
        self._call.activation = activation
        self._done(self._library.sidestage_run(self._context, self._call))

    @staticmethod
    def _done(error: int) -> None:
        if error == 1:
            raise MemoryError("no memory for the intermediate values of this many tokens: use fewer")
        assert error == 0, "a row's place is outside of the output"


def _check(layout: BlobLayout, variant: str, isa: str) -> None:
    if layout.bits not in CODE_PLANES or layout.group not in GROUPS:
        raise ValueError(
            f"the cpu kernel cannot run {layout.bits} bits in groups of {layout.group}: it runs "
            f"{', '.join(CODE_PLANES)} bits in groups of {', '.join(map(str, GROUPS))}"
        )
    if variant not in VARIANTS:
        raise ValueError(f'the cpu kernel has no variant "{variant}": choose one of {", ".join(VARIANTS)}')
    if isa and isa not in ISAS:
        raise ValueError(f'the cpu kernel has no "{isa}" code: choose one of {", ".join(ISAS)}')


def _native(rows: Tensor) -> Tensor:
    """The rows as C reads them: contiguous, float32 or bfloat16."""
    return (rows if rows.dtype in _NATIVE else rows.to(torch.float32)).contiguous()
