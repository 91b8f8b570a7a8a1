"""TokenGraphs: a model's forward for one new token, recorded once per cache and replayed from then on.

Owns which calls are recorded, what a recording is good for and how long it lives. A recording does
what the host launched while it was made, at the same addresses: what changes from token to token is
copied to where it reads, and where anything else has changed the host runs the forward again.
"""

import functools
import inspect
import logging
import weakref
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from operator import is_
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache
from transformers.utils import ModelOutput

from compute.beside.follower import Launched
from compute.beside.token_call import AnswerForm, Call, Path, arguments, tensors_of
from compute.beside.token_recorder import Recorder, Recording
from compute.beside.token_strays import Stray
from compute.undivided import Undivided

_log = logging.getLogger("sidestage")

#: Each has a cache, which takes memory, and a graph, which takes some megabytes.
MAX_RECORDINGS = 8
_MAX_SIGNATURES = 256

Forward = Callable[..., ModelOutput]


class Runner(Protocol):
    """What the MoE layers need to be told. An error of its own in `recording` ends the recordings."""

    def takes(self, num_tokens: int) -> bool:
        """Whether the device runs a token of so many sequences without the host, as things are now."""

    def recording(self) -> AbstractContextManager[Sequence[Launched]]:
        """Inside, the MoE layers only launch: the host follows, asks and copies nothing, marks no event.

        Its value is their steps.
        """

    def replaying(self, steps: Sequence[Launched]) -> AbstractContextManager[None]:
        """Inside, a token's forward that was recorded as `steps` is launched, and nothing else."""

    def follow_to_end(self) -> None:
        """Follow the device to the end of what was launched."""


@dataclass(slots=True)
class _Known:
    """What has been seen of a signature. `form` is what it answers; None is also "not to be recorded"."""

    num_runs: int = 0
    form: AnswerForm | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Recorded:
    """Good for one cache, as long as it lives and its tensors are the ones that it had."""

    signature: Hashable
    cache: weakref.ref[StaticCache]
    state: list[Tensor]
    strays: list[Stray]
    inputs: dict[Path, Tensor]
    form: AnswerForm
    recording: Recording[dict[str, Tensor]]
    steps: Sequence[Launched]


class TokenGraphs:
    """Before `Passes.guard`, which lets one forward in at a time: `take_over` is called first.

    The first call of a kind runs as ever (kernels are compiled, state is made), the second is a rehearsal,
    which shows whether it can be recorded, the third is recorded and replayed, as are those after it.
    Of a kind that is known, a new cache's first call is recorded.
    """

    def __init__(
        self,
        recorder: Recorder,
        runner: Runner,
        undivided: Undivided | None = None,
        max_recordings: int = MAX_RECORDINGS,
    ) -> None:
        #: Sentences for the user: why nothing is recorded any more.
        self.notices: list[str] = []
        self.num_recorded = 0
        self.num_replayed = 0
        self._recorder = recorder
        self._runner = runner
        self._undivided = undivided or Undivided()
        self._max_recordings = max_recordings
        self._known: dict[Hashable, _Known] = {}
        self._recorded: list[_Recorded] = []
        self._moving: weakref.WeakSet[StaticCache] = weakref.WeakSet()
        self._is_over = False

    def take_over(self, model: PreTrainedModel) -> None:
        """From now on `model.forward` comes through here. Holds no reference to the model."""
        method: Forward = model.forward
        names = [
            name
            for name, parameter in inspect.signature(method).parameters.items()
            if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        ]

        @functools.wraps(method)
        def forward(*args: object, **kwargs: object) -> ModelOutput:
            call = None
            if not self._is_over:
                call = Call.of(names, args, kwargs, self._recorder.device, model.training)
            if call is None or not self._runner.takes(call.num_tokens):
                return method(*args, **kwargs)
            return self._answer(model, method, call)

        model.forward = forward

    def close(self) -> None:
        """Drop every recording; the model's forward is the host's again. Idempotent."""
        self._is_over = True
        self._recorded.clear()
        self._known.clear()

    @property
    def num_held(self) -> int:
        """Recordings that could be replayed."""
        return len(self._recorded)

    # --- a call -------------------------------------------------------------------------------

    def _answer(self, model: PreTrainedModel, method: Forward, call: Call) -> ModelOutput:
        recorded = self._find(call)
        if recorded is None and call.cache not in self._moving:
            known = self._know(call)
            known.num_runs += 1
            if known.num_runs == 2:
                return self._rehearse(method, call, known)
            if known.num_runs > 2 and known.form:
                recorded = self._record(model, method, call, known.form)
        if recorded is None:
            return method(**call.arguments())
        return self._replay(recorded, call)

    def _find(self, call: Call) -> _Recorded | None:
        """The recording for this call, the latest used last; one that is good for nothing any more goes."""
        for recorded in list(self._recorded):
            if recorded.cache() is call.cache and recorded.signature == call.signature:
                break
        else:
            return None
        self._recorded.remove(recorded)
        if not all(map(is_, recorded.state, call.state)):
            self._moving.add(call.cache)  # beam search gives a cache other tensors with every token
            return None
        if not all(stray.is_there() for stray in recorded.strays):
            return None
        self._recorded.append(recorded)
        return recorded

    def _know(self, call: Call) -> _Known:
        if len(self._known) >= _MAX_SIGNATURES and call.signature not in self._known:
            self._known.clear()  # some argument is another one with every token
        return self._known.setdefault(call.signature, _Known())

    def _rehearse(self, method: Forward, call: Call, known: _Known) -> ModelOutput:
        """Run as ever, and look whether the host had to wait for the device within."""
        output, objection = self._recorder.rehearse(lambda: method(**call.arguments()))
        if objection:
            self._give_up(objection)
        known.form = AnswerForm.of(output, call.cache)
        return output

    def _record(
        self, model: PreTrainedModel, method: Forward, call: Call, form: AnswerForm
    ) -> _Recorded | None:
        """None where it failed: then nothing has been run, and nothing is recorded any more."""
        with torch.inference_mode(False):
            inputs = {path: tensor.detach().clone() for path, tensor in call.tensors.items()}
        constants, cache = call.constants, weakref.ref(call.cache, self._forget)
        strays = Stray.all_of(model)
        del self._recorded[: max(len(self._recorded) + 1 - self._max_recordings, 0)]

        def work() -> dict[str, Tensor]:
            return tensors_of(method(**arguments(inputs, constants, cache())))

        reason = ""
        try:
            with self._runner.recording() as steps:
                recording = self._recorder.record(work)
        except RuntimeError as error:
            reason = str(error) or type(error).__name__
        finally:
            replaced = [stray.name for stray in strays if stray.put_back()]
        if replaced and not reason:
            reason = f"the model keeps a tensor ({replaced[0]}) from one token to the next"
        if reason:
            self._give_up(reason)
            return None
        recorded = _Recorded(call.signature, cache, call.state, strays, inputs, form, recording, steps)
        self._recorded.append(recorded)
        self.num_recorded += 1
        return recorded

    def _replay(self, recorded: _Recorded, call: Call) -> ModelOutput:
        """The answer's tensors are the caller's own.

        What is launched is followed, now or later, whatever Ctrl-C or a full memory says.
        """
        with self._undivided:
            for path, tensor in call.tensors.items():
                recorded.inputs[path].copy_(tensor)
            with self._runner.replaying(recorded.steps):
                outputs = recorded.recording.replay()
            own = {name: tensor.clone() for name, tensor in outputs.items()}
            self._runner.follow_to_end()
        self.num_replayed += 1
        return recorded.form.fill(own, call.cache)

    # --- the end of recordings ----------------------------------------------------------------

    def _forget(self, cache: weakref.ref[StaticCache]) -> None:
        """`cache` is no more. Called by whoever lets go of it last, in any thread."""
        for recorded in list(self._recorded):
            if recorded.cache is cache:
                self._recorded.remove(recorded)

    def _give_up(self, reason: str) -> None:
        self.close()
        first_line = reason.strip().partition("\n")[0]
        notice = (
            f"no CUDA graph is made of a token's forward, its kernels are launched one by one: {first_line}"
        )
        self.notices.append(notice)
        _log.warning("%s", notice)
