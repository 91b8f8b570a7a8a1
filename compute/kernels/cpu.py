"""The CPU kernel: quantized experts read as they lie in their blobs, by the compiled cpu.c.

Owns the way from tensors to C, and the choice between one call (up, activation, down) and two with
the module's own gate between them. Products are float32 and outputs are rounded once, so rows in
bfloat16 come out closer to exact than torch's. A row's output does not depend on the rows beside
it, on threads or on addresses. One instance serves one thread at a time; knows no slots.
"""

import ctypes
import weakref
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, c_int, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from protocol.blob import CODE_PLANES, BlobLayout

LIBRARY = Path(__file__).with_name("libcpu.so")
ABI = 1
GROUPS = (16, 32, 64, 128, 256, 512, 1024)
#: How activations are multiplied: rounded to 16 bits within each group of K (relative error of an
#: expert about 3e-5, and the faster one), or as they are (about 1e-6).
VARIANTS = ("int16", "fp32")
ISAS = ("generic", "avx2", "avx512")

_ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2")
_ACTIVATION_CLASSES = {
    "torch.nn.modules.activation": {"SiLU": "silu", "ReLU": "relu"},
    "transformers.activations": {
        "SiLUActivation": "silu",
        "GELUTanh": "gelu_tanh",
        "NewGELUActivation": "gelu_tanh",
        "ReLUSquaredActivation": "relu2",
        "GELUActivation": "gelu",
    },
}
_TYPES = {"float32": 0, "bfloat16": 1, "float16": 2}
_NATIVE = {torch.float32: 0, torch.bfloat16: 1}


class _Experts(Protocol):
    """What transformers' experts interface gives a module."""

    has_gate: bool
    has_post_expert_norm: bool

    def _apply_gate(self, gate_up_out: Tensor) -> Tensor: ...
    def act_fn(self, hidden: Tensor) -> Tensor: ...
    def post_expert_norm(self, hidden: Tensor) -> Tensor: ...


class _Matrix(Structure):
    """`Matrix` of cpu.c."""

    _fields_ = (
        *((name, c_int32) for name in ("bits", "group", "num_rows", "num_columns")),
        *((name, c_int64) for name in ("plane", "low_plane", "scale", "zero", "bias", "bias_type")),
    )


class _Call(Structure):
    """`Call` of cpu.c."""

    _fields_ = (
        ("up", _Matrix),
        ("down", _Matrix),
        *((name, c_int32) for name in ("variant", "threads", "activation", "has_gate")),
        *((name, c_int32) for name in ("x_type", "out_type", "num_experts", "top_k")),
        ("num_tokens", c_int64),
        *((name, c_void_p) for name in ("blobs", "first", "places", "weights", "x", "out")),
    )


@cache
def library() -> ctypes.CDLL | str:
    """The compiled cpu.c, or why it cannot be used."""
    if not LIBRARY.is_file():
        return f"{LIBRARY.name} was not compiled: install a C compiler, then sidestage again"
    try:
        found = ctypes.CDLL(str(LIBRARY))
        found_abi = found.sidestage_abi()
    except (OSError, AttributeError) as error:
        return f"{LIBRARY.name} cannot be used ({error}): install sidestage again"
    if found_abi != ABI:
        return f"{LIBRARY.name} is of another version of sidestage: install sidestage again"
    found.sidestage_open.restype = c_void_p
    found.sidestage_open.argtypes = (c_int,)
    found.sidestage_close.argtypes = (c_void_p,)
    found.sidestage_run.argtypes = (c_void_p, POINTER(_Call))
    found.sidestage_project.argtypes = (c_void_p, POINTER(_Call), c_int)
    found.sidestage_read.argtypes = (c_void_p, c_void_p, c_int64)
    found.sidestage_read.restype = c_uint64
    return found


def best_isa() -> str:
    """The widest instruction set that this machine runs. Needs the library."""
    found = library()
    assert isinstance(found, ctypes.CDLL), found
    return [name for number, name in enumerate(ISAS) if found.sidestage_has_isa(number)][-1]


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
        self._call = _Call(
            up=_matrix(layout, "gate_up_proj" if has_gate else "up_proj"),
            down=_matrix(layout, "down_proj"),
            variant=VARIANTS.index(variant),
            has_gate=has_gate,
        )
        self._activations: weakref.WeakKeyDictionary[nn.Module, int | None] = weakref.WeakKeyDictionary()
        self._reserve(16)

    def __call__(self, module: nn.Module, blob: Tensor, rows: Tensor) -> Tensor:
        """[n, H] from `rows` [n, H]; see `ExpertKernel`."""
        assert blob.is_cpu and rows.is_cpu, "the cpu kernel reads the memory of the CPU"
        return self.run_rows(module, [blob.data_ptr()], [0, len(rows)], rows)

    def run_rows(
        self, module: nn.Module, addresses: Sequence[int], first: Sequence[int], rows: Tensor
    ) -> Tensor:
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
        experts = cast(_Experts, module)
        proj = self._project(addresses, first, rows, is_down=False)
        inner = experts._apply_gate(proj) if experts.has_gate else experts.act_fn(proj)
        out = self._project(addresses, first, inner, is_down=True)
        return experts.post_expert_norm(out) if experts.has_post_expert_norm else out

    def run_group(
        self,
        module: nn.Module,
        addresses: Sequence[int],
        first: Sequence[int],
        places: Tensor,
        hidden: Tensor,
        weights: Tensor,
        out: Tensor,
    ) -> None:
        """Several experts of one layer-step; their weighted rows are written to their places in `out`.

        hidden [T, H]; weights [T, K]; out [T * K, H] in the promoted dtype of both; places int64 [R].
        Row i reads token places[i] // K and becomes out[places[i]]; an expert's rows as in
        `run_rows`. Bit for bit `run_rows`, then torch's product with the weights.
        """
        assert out.is_contiguous() and out.dtype == torch.promote_types(hidden.dtype, weights.dtype)
        top_k = weights.shape[1]
        activation = self._activation(module)
        if activation is None or hidden.dtype not in _NATIVE or out.dtype not in _NATIVE:
            rows = self.run_rows(module, addresses, first, hidden[places // top_k])
            out[places] = rows * weights.reshape(-1, 1)[places]
            return
        assert places.dtype == torch.int64 and len(places) == first[-1]
        x, places = hidden.contiguous(), places.contiguous()
        factors = weights.to(torch.float32).contiguous()
        self._describe(addresses, first, x, out)
        call = self._call
        call.top_k, call.places, call.weights = top_k, places.data_ptr(), factors.data_ptr()
        self._run(activation)

    def read(self, memory: Tensor) -> None:
        """Read every byte of a uint8 tensor with one thread and do nothing with it: a yardstick."""
        self._library.sidestage_read(self._context, memory.data_ptr(), memory.numel())

    def _activation(self, module: nn.Module) -> int | None:
        """The number of the activation, if C can run the module from end to end."""
        try:
            return self._activations[module]
        except KeyError:
            self._activations[module] = found = _fused_activation(module)
            return found

    def _project(
        self, addresses: Sequence[int], first: Sequence[int], rows: Tensor, *, is_down: bool
    ) -> Tensor:
        """[R, N] in the rows' dtype: one matrix of every expert, with its bias."""
        matrix = self._call.down if is_down else self._call.up
        x = _native(rows)
        out = torch.empty((len(x), matrix.num_rows), dtype=x.dtype)
        self._describe(addresses, first, x, out)
        self._done(self._library.sidestage_project(self._context, self._call, is_down))
        return out.to(rows.dtype)

    def _describe(self, addresses: Sequence[int], first: Sequence[int], x: Tensor, out: Tensor) -> None:
        """All of a call but its activation; rows are their own places until told otherwise."""
        call, num_experts = self._call, len(addresses)
        assert len(first) == num_experts + 1
        if num_experts > len(self._addresses):
            self._reserve(num_experts)
        self._addresses[:num_experts] = list(addresses)
        self._first[: num_experts + 1] = list(first)
        call.num_experts, call.num_tokens, call.top_k = num_experts, x.shape[0], 1
        call.x_type, call.out_type = _NATIVE[x.dtype], _NATIVE[out.dtype]
        call.threads = self._threads or torch.get_num_threads()
        call.x, call.out = x.data_ptr(), out.data_ptr()
        call.places = call.weights = None

    def _reserve(self, num_experts: int) -> None:
        """Room for the addresses of so many experts."""
        self._addresses = (c_uint64 * num_experts)()
        self._first = (c_int64 * (num_experts + 1))()
        self._call.blobs = ctypes.addressof(self._addresses)
        self._call.first = ctypes.addressof(self._first)

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


def _matrix(layout: BlobLayout, name: str) -> _Matrix:
    """Where the parameter `name` lies in a blob, for C."""
    offsets = {segment.name: segment.offset for segment in layout.segments}
    planes = [layout.segment(name + end) for end, _ in CODE_PLANES[layout.bits]]
    scale = layout.segment(name + ".scale")
    bias = layout.segment(name + "_bias") if name + "_bias" in offsets else None
    return _Matrix(
        bits=int(layout.bits),
        group=layout.group,
        num_rows=scale.shape[0],
        num_columns=planes[0].shape[1],
        plane=planes[0].offset,
        low_plane=planes[1].offset if len(planes) > 1 else -1,
        scale=scale.offset,
        zero=offsets[name + ".zero"],
        bias=bias.offset if bias else -1,
        bias_type=_TYPES[bias.dtype] if bias else 0,
    )


def _fused_activation(module: nn.Module) -> int | None:
    """The number of the activation if the module is nothing but up, activation or default gate, down."""
    experts = cast(_Experts, module)
    if experts.has_post_expert_norm or (experts.has_gate and not _has_default_gate(module)):
        return None
    kind: type = type(experts.act_fn)
    name = _ACTIVATION_CLASSES.get(kind.__module__, {}).get(kind.__name__)
    return None if name is None else _ACTIVATIONS.index(name)


def _has_default_gate(module: nn.Module) -> bool:
    """Whether gate and up are halves, and the activated gate times up is all that is made of them."""
    gate: Callable[..., Tensor] | None = getattr(module, "_apply_gate", None)
    return getattr(gate, "__module__", "") == "transformers.integrations.moe"


def _native(rows: Tensor) -> Tensor:
    """The rows as C reads them: contiguous, float32 or bfloat16."""
    return (rows if rows.dtype in _NATIVE else rows.to(torch.float32)).contiguous()
