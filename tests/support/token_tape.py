"""Recorders without a CUDA device: what a graph would do, with torch's operators on the CPU.

`Tape` keeps the operators that a work launched, with the very tensors they were given, and replays
them without its Python, as a graph would: whatever Python decided stays decided, and a tensor that
has been replaced stays what it was. `Rerun` calls the work again, for what no operator does (kernels
in C, loaders). Both let recordings share their results' memory, as recordings in one pool do.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

Results = dict[str, Tensor]
#: What a recording may not do: wait for the device's answer.
WAITING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


class _Waits(TorchDispatchMode):
    """Notes operators that would make the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITING:
            self.heard.append(str(func))
        return func(*args, **(kwargs or {}))


@dataclass
class _Op:
    func: Any
    args: Any
    kwargs: Any
    outputs: list[Tensor]


class _Taping(TorchDispatchMode):
    """Runs and keeps every operator; puts back afterwards what they wrote to tensors from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[_Op] = []
        self._made: set[int] = set()
        self._before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in WAITING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info and argument.alias_info.is_write and isinstance(value, Tensor):
                self._before.append((value, value.clone()))
        result = func(*args, **kwargs)
        outputs = [value for value in _flat(result) if isinstance(value, Tensor)]
        self.ops.append(_Op(func, args, kwargs, outputs))
        return result

    def undo(self) -> None:
        for tensor, before in reversed(self._before):
            tensor.copy_(before)


class Tape:
    """`num_recorded`, `num_replayed`: how often it was asked to."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.num_recorded = 0
        self.num_replayed = 0
        self._shared: list[Results] = []

    def rehearse(self, work: Callable[[], Any]) -> tuple[Any, str]:
        with _Waits() as waits:
            done = work()
        return done, f"the model waits for {waits.heard[0]}" if waits.heard else ""

    def record(self, work: Callable[[], Results]) -> "TapeRecording":
        self.num_recorded += 1
        taping = _Taping()
        try:
            with taping:
                results = work()
        finally:
            taping.undo()
        for tensor in results.values():
            tensor.fill_(torch.nan)
        self._shared.append(results)
        return TapeRecording(self, taping.ops, results)

    def spoil_others(self, own: Results) -> None:
        """Another recording's results lie where this one computes."""
        for results in self._shared:
            for tensor in results.values() if results is not own else ():
                tensor.fill_(torch.nan)


@dataclass
class TapeRecording:
    tape: Tape
    ops: list[_Op]
    results: Results

    @torch.inference_mode()
    def replay(self) -> Results:
        """A device knows no inference mode: here it allows to write to whatever was recorded."""
        self.tape.num_replayed += 1
        self.tape.spoil_others(self.results)
        now: dict[int, Tensor] = {}

        def current(value: Any) -> Any:
            return now.get(id(value), value) if isinstance(value, Tensor) else value

        for op in self.ops:
            made = op.func(*tree_map(current, op.args), **tree_map(current, op.kwargs))
            made = [value for value in _flat(made) if isinstance(value, Tensor)]
            now.update({id(old): new for old, new in zip(op.outputs, made, strict=True)})
        for tensor in self.results.values():
            tensor.copy_(current(tensor))
        return self.results


@dataclass
class Rerun:
    """Works need not be operators; nothing tells what in them could not be recorded."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    num_recorded: int = 0
    num_replayed: int = 0

    def rehearse(self, work: Callable[[], Any]) -> tuple[Any, str]:
        return work(), ""

    def record(self, work: Callable[[], Results]) -> "RerunRecording":
        self.num_recorded += 1
        return RerunRecording(self, work)


@dataclass
class RerunRecording:
    rerun: Rerun
    work: Callable[[], Results]
    results: Results = field(default_factory=dict)

    def replay(self) -> Results:
        self.rerun.num_replayed += 1
        for name, tensor in self.work().items():
            self.results.setdefault(name, tensor).copy_(tensor)
        return self.results


def _flat(result: Any) -> list[Any]:
    return list(result) if isinstance(result, tuple | list) else [result]
