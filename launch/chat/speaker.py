"""The compute process of `sidestage chat`: loads a model once, then answers question after question.

`python -P -m launch.chat.speaker` with the fds that every compute process gets; its text fd is the
socket to the chat. SIGINT ends the answer under way and nothing else. Keeps no
history but what the model has read of it.
"""

import signal
import socket
import sys
from collections.abc import Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

from launch.chat.history import Fitted, Message, fit
from launch.chat.reading import tokens_of
from launch.chat.wire import Line
from launch.generate import Result, compute_fds, do_job, offload_for
from launch.job import Job
from launch.sampling import context_of, generation_keywords
from protocol.child import report_ready

if TYPE_CHECKING:
    from compute import Offloaded
    from launch.narrator import Narrator

#: Counters of a whole run, of which an answer tells its own share.
_COUNTERS = ("lookups", "hits", "late", "misses", "prefetch_issued", "prefetch_used", "stall_s", "bytes_read")


def main() -> int:
    """Converse until the chat hangs up; the exit code is 0 unless there is no result."""
    fds = compute_fds("launch.chat.speaker").parse_args()
    line = Line(socket.socket(fileno=fds.text_fd))
    try:
        return do_job(fds, lambda job: _converse(job, line, fds.ready_fd))
    finally:
        line.close()


def _converse(job: Job, line: Line, ready_fd: int) -> Result:
    with offload_for(job) as offloaded:
        speaker = Speaker(job, offloaded, line)
        signal.signal(signal.SIGINT, speaker.stop)
        report_ready(ready_fd, {})
        line.send(ready={"has_template": speaker.has_template, "context": speaker.context})
        for question in line:
            speaker.answer(question["messages"])
        return dict(offloaded.report())


class Speaker:
    """Answers with one model. Raises ValueError when that has no tokenizer."""

    def __init__(self, job: Job, offloaded: "Offloaded", line: Line) -> None:
        from launch.chat.recall import Recall

        if offloaded.tokenizer is None:
            raise ValueError(
                "the model has no tokenizer: nothing can be said to it; use offload() from Python"
            )
        self._job = job
        self._offloaded = offloaded
        self._tokenizer = offloaded.tokenizer
        self._line = line
        self._narrator: Narrator | None = None
        self._recall = Recall()
        self._num_answers = 0
        self.has_template = bool(self._tokenizer.chat_template)
        self.context = context_of(offloaded.model)

    def stop(self, number: int, frame: FrameType | None) -> None:
        """SIGINT: the answer under way, if there is one, ends with its current token."""
        if self._narrator:
            self._narrator.wants_to_stop = True

    def answer(self, messages: list[Message]) -> None:
        """Say what comes to mind, piece by piece; then what it cost, or why there is no answer."""
        try:
            fitted = fit(messages, self._count, self.context, self._job.max_new_tokens)
        except ValueError as error:
            self._line.send(refused=str(error))
            return
        if not any(message["role"] == "assistant" for message in fitted.messages):
            self._recall.forget()  # a conversation begins: its answers depend on no other
        before = self._offloaded.report()
        told = self._generate(fitted)
        after = self._offloaded.report()
        told |= {"num_forgotten": fitted.num_forgotten, "prompt_tokens": fitted.prompt_tokens}
        self._line.send(done=told | _share(before, after))

    def _generate(self, fitted: Fitted) -> Result:
        import torch
        from transformers import StoppingCriteriaList

        from launch.narrator import Narrator

        torch.manual_seed(self._job.seed + self._num_answers)
        self._num_answers += 1
        model = self._offloaded.model
        prompt_ids = tokens_of(fitted.messages, self._tokenizer)
        inputs = torch.tensor([prompt_ids], device=model.device)
        cache = self._recall.take(prompt_ids)
        recalled_tokens = cache.get_seq_length() if cache is not None else 0
        narrator = self._narrator = Narrator(self._tokenizer, _Pieces(self._line))
        try:
            output = model.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                **{**generation_keywords(self._job), "max_new_tokens": fitted.max_new_tokens},
                past_key_values=cache,
                return_dict_in_generate=True,
                streamer=narrator,
                stopping_criteria=StoppingCriteriaList([narrator.stops]),
            )
        finally:
            self._narrator = None
        all_ids = output.sequences[0].tolist()
        if getattr(model.generation_config, "cache_implementation", None) is None:
            # A model that names its kind of cache gets a new one each time: generate takes no other.
            self._recall.keep(getattr(output, "past_key_values", None), all_ids)
        token_ids = all_ids[len(prompt_ids) :]
        return {
            "text": self._tokenizer.decode(token_ids, skip_special_tokens=True),
            "recalled_tokens": recalled_tokens,
            "new_tokens": len(token_ids),
            "ttft_s": narrator.ttft_s,
            "tokens_per_second": narrator.tokens_per_second,
            "generate_s": narrator.lasted_s,
            "is_cut_short": narrator.wants_to_stop,
        }

    def _count(self, messages: list[Message]) -> int:
        return len(tokens_of(messages, self._tokenizer))


class _Pieces:
    """A text file, as far as a Narrator cares, that is really the line to the chat."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def write(self, text: str) -> int:
        if not self._line.send(text=text):
            raise BrokenPipeError
        return len(text)

    def flush(self) -> None:
        """Each piece has gone already."""


def _share(before: Mapping[str, Any], after: Mapping[str, Any]) -> Result:
    return {name: after[name] - before[name] for name in _COUNTERS}


if __name__ == "__main__":
    sys.exit(main())
