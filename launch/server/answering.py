"""The compute process of `sidestage serve`: takes orders from the front, answers one batch after the other.

`python -P -m launch.server.answering --batch N` and the fds of every compute process; `--text-fd` is
a socket to the front. The main thread generates, another reads orders, a third tells figures.
"""

import contextlib
import queue
import socket
import sys
import threading
import traceback
from typing import TYPE_CHECKING

from launch.generate import Result, compute_fds, do_job, offload_for
from launch.job import Job
from launch.server.messages import (
    Ask,
    Cancel,
    Declined,
    Ended,
    Event,
    Figures,
    Inquire,
    Loaded,
    Report,
    from_line,
    to_line,
)
from launch.server.refusals import Refusal
from protocol.child import report_ready
from protocol.errors import SidestageError
from protocol.manifest import Manifest

if TYPE_CHECKING:
    from compute import Offloaded
    from launch.server.prompts import Prompt

#: How often figures are asked for while they change.
_LOOKS = 5


def main() -> int:
    """Answer until the front hangs up; the exit code."""
    parser = compute_fds("launch.server.answering")
    parser.add_argument("--batch", type=int, required=True)
    given = parser.parse_args()
    with socket.socket(fileno=given.text_fd) as front:

        def serve(job: Job) -> Result:
            with offload_for(job) as offloaded:
                report_ready(given.ready_fd, {})
                Answering(offloaded, front, given.batch).run()
                return dict(offloaded.report())

        return do_job(given, serve)


class Answering:
    """Answers what comes over `front`, at most `batch` requests at a time."""

    def __init__(self, offloaded: "Offloaded", front: socket.socket, batch: int) -> None:
        from launch.server.prompts import PromptReader
        from launch.server.waiting import Waiting

        if offloaded.tokenizer is None:
            raise ValueError(
                "the model has no tokenizer: a server reads and writes text, use offload() instead"
            )
        self._offloaded = offloaded
        self._model, self._tokenizer = offloaded.model, offloaded.tokenizer
        self._own = self._model.generation_config
        self._end_ids, self._pad_id = _special_ids(self._own.eos_token_id, self._own.pad_token_id)
        self._front = front
        self._batch = batch
        self._reader = PromptReader(self._model, self._tokenizer)
        self._waiting = Waiting()
        self._inquiries: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._sending = threading.Lock()
        #: Every prompt from its reading to its end, by the request's number.
        self._prompts: dict[int, Prompt] = {}

    def run(self) -> None:
        """Until the front hangs up. Raises SidestageError when no request can be answered any more."""
        threads = [threading.Thread(target=work, daemon=True) for work in (self._obey, self._tell_figures)]
        for thread in threads:
            thread.start()
        store = self._offloaded.store
        fingerprint = Manifest.read(store).fingerprint
        self._tell(Loaded(str(store), fingerprint, self._reader.context))
        while prompts := self._waiting.take(self._batch):
            self._answer(prompts)
        self._inquiries.put(False)
        for thread in threads:
            thread.join(timeout=5.0)

    def _answer(self, prompts: "list[Prompt]") -> None:
        """One batch. What goes wrong in it is told to those who asked; a lost loader ends everything."""
        from launch.server.batch import Batch
        from launch.server.row import Row

        told = (self._tokenizer, self._own, self._end_ids, self._model.device, self._tell)
        rows = [Row(prompt, *told) for prompt in prompts]
        try:
            Batch(rows, self._pad_id).run(self._model)
        except SidestageError:
            raise
        except Exception as error:  # noqa: BLE001 - the next request may do better; the trace goes to stderr
            traceback.print_exc()
            text = f"the answer could not be made: {type(error).__name__}: {error}"
            for row in rows:
                if not row.has_ended:
                    self._tell(Declined(row.number, 500, text, None, None))
        finally:
            for prompt in prompts:
                del self._prompts[prompt.ask.number]

    def _obey(self) -> None:
        """Read orders until the front hangs up."""
        with self._front.makefile("rb") as orders:
            for line in orders:
                match from_line(line):
                    case Ask() as ask:
                        self._receive(ask)
                    case Cancel(number=number):
                        self._cancel(number)
                    case Inquire():
                        self._inquiries.put(True)
        for prompt in [*self._prompts.values()]:
            prompt.is_cancelled = True
        self._waiting.close()

    def _receive(self, ask: Ask) -> None:
        try:
            prompt = self._prompts[ask.number] = self._reader.read(ask)
            self._waiting.put(prompt)
        except Refusal as refusal:
            self._tell(Declined(ask.number, refusal.status, refusal.text, refusal.param, refusal.code))
        except Exception as error:  # noqa: BLE001 - whatever a tokenizer raises is about this request alone
            traceback.print_exc()
            text = f"the prompt could not be read: {type(error).__name__}: {error}"
            self._tell(Declined(ask.number, 500, text, None, None))

    def _cancel(self, number: int) -> None:
        """A request that waits ends at once, one that is being answered with its current token."""
        prompt = self._prompts.get(number)
        if prompt is None:
            return  # it has ended meanwhile
        prompt.is_cancelled = True
        if self._waiting.remove(prompt):
            del self._prompts[number]
            self._tell(Ended(number, "cancelled", "", len(prompt.token_ids), 0))

    def _tell_figures(self) -> None:
        """In a thread of its own, for it waits for the loader's counters."""
        while self._inquiries.get():
            try:
                self._tell(Figures(self._report()))
            except SidestageError as error:
                self._waiting.fail(error)
                return

    def _report(self) -> Report:
        """Taken while the main thread generates: a table that changes under it is looked at again."""
        for _ in range(_LOOKS):
            with contextlib.suppress(RuntimeError):
                return self._offloaded.report()
        return self._offloaded.report()

    def _tell(self, event: Event) -> None:
        """To the front; if it has gone, its lifeline ends this process."""
        with self._sending:
            try:
                self._front.sendall(to_line(event))
            except (BrokenPipeError, ConnectionResetError):
                return


def _special_ids(end: int | list[int] | None, pad: int | None) -> tuple[frozenset[int], int]:
    """The tokens that end an answer, and the one that fills a row."""
    ends = [end] if isinstance(end, int) else end or []
    filler = pad if pad is not None else ends[0] if ends else 0
    return frozenset(ends), filler


if __name__ == "__main__":
    sys.exit(main())
