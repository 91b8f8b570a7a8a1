"""Passes: who may run an offloaded model, and when a forward pass begins.

One forward pass, and one `generate`, at a time; only while the stage is open, and only in the
process that opened it. Knows transformers' calling habits; knows nothing of experts.
"""

import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import StaticLayer

from compute.undivided import Undivided

P = ParamSpec("P")
R = TypeVar("R")


class Passes:
    """The turnstile of one offloaded model. `begin_pass` is told (num_tokens, is_new_sequence).

    Ctrl-C does not fall into what is `undivided` within a pass.
    """

    def __init__(self, begin_pass: Callable[[int, bool], None], undivided: Undivided | None = None) -> None:
        self._begin_pass = begin_pass
        self._undivided = undivided or Undivided()
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._is_closed = False

    def guard(self, model: PreTrainedModel) -> None:
        """From now on `model.forward` and `model.generate` come through here."""
        model.forward = self._guarded(model.forward, announces=True)
        if hasattr(model, "generate"):
            model.generate = self._guarded(model.generate, announces=False)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Alone, after all who came before. Raises RuntimeError after `close` or in a fork."""
        if os.getpid() != self._owner:
            raise RuntimeError(
                f"this model was offloaded in process {self._owner} and cannot run in its fork "
                f"{os.getpid()}: call `offload` in the process that runs the model"
            )
        with self._lock:
            if self._is_closed:
                raise RuntimeError("this offloaded model is closed: call `offload` again to run it")
            yield

    @contextmanager
    def idle(self) -> Iterator[bool]:
        """Whether nobody else runs the model, or will within. Never waits; not after `close` or in a fork."""
        is_idle = os.getpid() == self._owner and not self._is_closed and self._lock.acquire(blocking=False)
        try:
            yield is_idle
        finally:
            if is_idle:
                self._lock.release()

    def close(self, timeout_s: float) -> None:
        """Let nobody in any more, and wait for the pass that is under way; at most `timeout_s`."""
        self._is_closed = True
        if os.getpid() == self._owner and self._lock.acquire(timeout=timeout_s):
            self._lock.release()

    def _guarded(self, method: Callable[P, R], announces: bool) -> Callable[P, R]:
        @functools.wraps(method)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.turn():
                if not announces:
                    return method(*args, **kwargs)
                with self._undivided.guarded():
                    self._begin_pass(*describe_pass(args, kwargs))
                    return method(*args, **kwargs)

        return guarded


def describe_pass(args: Sequence[object], kwargs: Mapping[str, object]) -> tuple[int, bool]:
    """(number of tokens, whether a sequence begins) of a model's forward with these arguments."""
    tokens = kwargs.get("input_ids", args[0] if args else None)
    if tokens is None:
        tokens = kwargs.get("inputs_embeds")
    num_tokens = tokens.shape[:2].numel() if isinstance(tokens, torch.Tensor) else 0
    past = kwargs.get("past_key_values")
    if not isinstance(past, Cache):
        return num_tokens, True
    is_one_each = isinstance(tokens, torch.Tensor) and tokens.shape[1:2] == (1,)
    goes_on = (is_one_each and _counts_on_device(past)) or _has_seen_tokens(past)
    return num_tokens, not goes_on


def _counts_on_device(cache: Cache) -> bool:
    """Whether the device would have to be asked how many tokens `cache` holds: static, and written to.

    For the sake of one new token nobody asks: it goes on with a sequence, unless it is a prompt of a
    single token in a cache that was reset.
    """
    return any(isinstance(layer, StaticLayer) and layer.is_initialized for layer in cache.layers)


def _has_seen_tokens(cache: Cache) -> bool:
    """Attention layers count their tokens; where a cache has only others, having state is having seen."""
    counted = [layer.get_seq_length() for layer in cache.layers if hasattr(layer, "get_seq_length")]
    if counted:
        return int(max(counted)) > 0
    return any(_holds_state(getattr(layer, "has_previous_state", False)) for layer in cache.layers)


def _holds_state(flag: bool | dict[int, bool]) -> bool:
    """transformers says it once for a layer, or for each of its states."""
    return any(flag.values()) if isinstance(flag, dict) else flag
