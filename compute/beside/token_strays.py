"""Strays: tensors that modules keep outside their parameters and buffers, from one forward to another.

Some models do (the offsets that a picture gave to positions). A recording reads the very tensor that
was there; Python's replacing it is no part of a replay.
"""

import weakref
from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Stray:
    """One such tensor; holds no reference to the module."""

    module: weakref.ref[nn.Module]
    name: str
    tensor: Tensor

    @classmethod
    def all_of(cls, model: nn.Module) -> list[Self]:
        return [
            cls(weakref.ref(module), name, value)
            for module in model.modules()
            for name, value in vars(module).items()
            if isinstance(value, Tensor)
        ]

    def is_there(self) -> bool:
        module = self.module()
        return module is not None and vars(module).get(self.name) is self.tensor

    def put_back(self) -> bool:
        """Whether it had been replaced: while recording, by a tensor that nothing has computed."""
        module = self.module()
        if module is None or self.is_there():
            return False
        setattr(module, self.name, self.tensor)
        return True
