"""Beside: decode steps that run on the device alone, and the policy that follows them.

What a stage hands its small layer-steps to in stages 2 and 3, and what a token's graph is recorded
and replayed through. Steps that the host takes part in are the stage's own, after `catch_up`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor, nn

from compute.beside.device_path import DevicePath
from compute.beside.follower import BegunPass, Follower, Launched
from compute.beside.resolver import MAX_ROWS
from compute.kernels.triton_plan import MAX_DECODE_TOKENS


class Beside:
    """`settle`: called before anything is launched in a pass (a caller may have changed streams).

    `watchers`: who wants to see every layer-step; while there are any, the host takes part in it.
    """

    def __init__(
        self,
        path: DevicePath,
        follower: Follower,
        *,
        num_layers: int,
        top_k: int,
        watchers: Sequence[object],
        settle: Callable[[], object],
    ) -> None:
        self._path = path
        self._follower = follower
        self._num_layers = num_layers
        self._watchers = watchers
        self._most_tokens = min(MAX_DECODE_TOKENS, MAX_ROWS // top_k)
        self._settle = settle
        self._clock = 0
        self._recorded_now: list[Launched] | None = None
        #: by number of tokens: the steps of a recorded pass
        self._recorded: dict[int, list[Launched]] = {}

    @property
    def num_fetched(self) -> int:
        """Experts that the device has read out of host memory by itself."""
        return self._follower.num_landed + self._follower.num_in_place

    def report(self) -> dict[str, int]:
        """Experts that the device brought into an open slot, and read in place for want of one."""
        return {
            "experts_landed": self._follower.num_landed,
            "experts_in_place": self._follower.num_in_place,
        }

    def takes(self, num_tokens: int) -> bool:
        """Whether a layer-step of so many tokens is for the device alone, as things are now."""
        return num_tokens <= self._most_tokens and not self._watchers

    def begin_pass(self, clock: int, num_tokens: int, is_new_sequence: bool) -> None:
        """A forward pass begins, whose layer 0 is layer-step `clock`."""
        self._clock = clock
        self._follower.make_room(self._num_layers)
        self._follower.begun(BegunPass(num_tokens, is_new_sequence))
        self._settle()
        self._path.begin_pass(clock)

    def run_layer(
        self, module: nn.Module, layer: int, hidden: Tensor, index: Tensor, weights: Tensor
    ) -> Tensor:
        """Launches, then follows what was posted meanwhile; within `recording` it launches only."""
        combined, step = self._path.run(module, layer, self._clock + layer, hidden, index, weights)
        if self._recorded_now is not None:
            self._recorded_now.append(step)
        else:
            self._follower.launched(step)
            self._follower.follow()
        return combined

    def catch_up(self) -> None:
        """Follow all that was launched: the host takes part in the next step."""
        self._follower.catch_up()

    # --- a token's graph ------------------------------------------------------------------------

    @contextmanager
    def recording(self) -> Iterator[None]:
        """A pass of few tokens is recorded, not run."""
        self._recorded_now = []
        try:
            yield
            self._recorded[self._recorded_now[0].num_tokens] = self._recorded_now
        finally:
            self._recorded_now = None

    def replayed(self, num_tokens: int) -> None:
        """A recorded pass was launched: follow it until the device has posted its last step."""
        for step in self._recorded[num_tokens]:
            self._follower.launched(replace(step, clock=self._clock + step.layer))
        self._follower.follow_to_end()
