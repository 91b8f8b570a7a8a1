"""Reporter: tells the loader once a second what the cache did, for whoever observes (`sidestage top`).

Hears every layer-step and sends a message in one of a second's: none belongs to a step, and none
is waited for. Knows nothing of who observes.
"""

import time

import numpy as np

from compute.client import LoaderClient
from compute.stage import Stage
from protocol.messages import Report

PERIOD_S = 1.0
#: Characters; a policy may have a long path. The loader takes twice as many.
MAX_ABOUT = 100


class Reporter:
    """A listener of `stage`. `about`: words on how it runs; `num_keys` experts there are."""

    def __init__(self, stage: Stage, client: LoaderClient, about: str, num_keys: int) -> None:
        self._stage = stage
        self._client = client
        self._about = about[:MAX_ABOUT]
        self._num_keys = num_keys
        self._num_tokens = 0
        self._due_s = 0.0

    def __call__(self, layer: int, num_tokens: int) -> None:
        """A layer-step is over."""
        if layer == 0:
            self._num_tokens += num_tokens
        now_s = time.monotonic()
        if now_s >= self._due_s:
            self._due_s = now_s + PERIOD_S
            self._client.report(self._report())

    def _report(self) -> Report:
        told = {**self._stage.tally(), "tokens": self._num_tokens}
        is_resident = np.zeros(self._num_keys, np.bool_)
        is_resident[list(self._stage.resident_keys())] = True
        return Report(self._about, tuple(told), tuple(told.values()), np.packbits(is_resident).tobytes())
