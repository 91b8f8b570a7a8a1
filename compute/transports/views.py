"""Tensors over the arena's frames, which are mapped read-only.

Owns one tensor per frame and shares it; whoever gets one must only read. Knows no leases.
"""

import warnings

import torch
from torch import Tensor

from compute.ledger import Completion
from protocol.arena import Arena


class FrameViews:
    """uint8 tensors [frame_bytes], made once per frame."""

    def __init__(self) -> None:
        self._arena: Arena | None = None
        self._frames = torch.empty(0, 0, dtype=torch.uint8)
        self._views: dict[int, Tensor] = {}

    def of(self, completion: Completion) -> Tensor:
        """The completion's frame, aligned to 4 KiB."""
        if completion.arena is not self._arena:
            self._arena = completion.arena
            self._frames = _tensor_over(completion.arena)
            self._views = {}
        view = self._views.get(completion.frame)
        if view is None:
            view = self._views[completion.frame] = self._frames[completion.frame]
        return view


def _tensor_over(arena: Arena) -> Tensor:
    """uint8 [num_frames, frame_bytes]. torch has no read-only tensors and warns of it: we know."""
    geometry = arena.geometry
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        flat = torch.frombuffer(arena.frames.reshape(-1), dtype=torch.uint8)
    return flat.view(geometry.num_frames, geometry.frame_bytes)
