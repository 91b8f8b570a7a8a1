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
from compute.supply import Supply


class Beside:
    """`settle`: called before anything is launched in a pass (a caller may have changed streams).

    `watchers`: who wants to see every layer-step; while there are any, the host takes part in it.
    """

    def __init__(
        self,
        path: DevicePath,
        follower: Follower,
        supply: Supply,
        *,
        num_layers: int,
        top_k: int,
        watchers: Sequence[object],
        settle: Callable[[], object],
    ) -> None:
        self._path = path
        self._follower = follower
        self._supply = supply
        self._num_layers = num_layers
        self._watchers = watchers
        self._most_tokens = min(MAX_DECODE_TOKENS, MAX_ROWS // top_k)
        self._settle = settle
        self._clock = 0
        self._recorded: list[Launched] | None = None

    @property
    def num_fetched(self) -> int:
        """Experts that the device has read out of host memory by itself."""
        return self._follower.num_landed + self._follower.num_in_place

    @property
    def clock(self) -> int:
        """The layer-step that the policy has followed last."""
        return self._follower.clock

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
        """A forward pass begins, whose layer 0 is layer-step `clock`.

        Where the host takes part, predictors hear of it before they see the pass's first residual.
        """
        self._clock = clock
        self._follower.make_room(clock + self._num_layers - 1)
        self._follower.begun(BegunPass(num_tokens, is_new_sequence))
        if not self.takes(num_tokens):
            self.catch_up()
        self._settle()
        self._path.begin_pass(clock)

    def is_over(self, layer: int) -> bool:
        """Whether the pass has gone through `layer`, so that what comes is another pass."""
        return self._follower.is_over(self._clock + layer)

    def run_layer(
        self, module: nn.Module, layer: int, hidden: Tensor, index: Tensor, weights: Tensor
    ) -> Tensor:
        """Launches, then follows what was posted meanwhile; within `recording` it launches only."""
        clock = self._clock + layer
        if self._recorded is not None:
            if self._recorded and layer <= self._recorded[-1].layer:
                raise RuntimeError("the model goes through an MoE layer twice for one token")
            room, step = self._path.bring(layer, clock, hidden, index, weights)
            self._recorded.append(step)
            return self._path.compute(module, room, hidden, weights)
        with self._supply.agreeing():
            room, step = self._path.bring(layer, clock, hidden, index, weights)
            self._follower.launched(step)
        combined = self._path.compute(module, room, hidden, weights)
        self._follower.follow()
        return combined

    def follow(self) -> None:
        """Follow what the device has done by now. Never waits."""
        self._follower.follow()

    def catch_up(self) -> None:
        """Follow all that was launched: the host takes part in the next step."""
        self._follower.catch_up()

    # --- a token's graph ------------------------------------------------------------------------

    @contextmanager
    def recording(self) -> Iterator[list[Launched]]:
        """A pass of few tokens is recorded, not run: its steps."""
        self._recorded = []
        try:
            yield self._recorded
        finally:
            self._recorded = None

    @contextmanager
    def replaying(self, steps: Sequence[Launched]) -> Iterator[None]:
        """What was recorded as `steps` is launched within."""
        with self._supply.agreeing():
            yield
            for step in steps:
                self._follower.launched(replace(step, clock=self._clock + step.layer))

    def follow_to_end(self) -> None:
        """Follow until the device has posted the last step launched."""
        self._follower.follow_to_end()
