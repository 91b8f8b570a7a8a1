"""The model as a chat's supervisor sees it: a loader, a compute process, and the line to it.

Starts both, keeps the loader alive while an answer is awaited, and leaves nothing behind. Knows
nothing of histories or terminals, and imports no torch.
"""

import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Self

from launch.chat.history import Message
from launch.chat.wire import Line
from launch.compute_process import ComputeProcess
from launch.interrupts import Interrupts
from launch.own_loader import own_loader
from launch.plan import Plan
from protocol.errors import SidestageError

_LOOK_S = 0.2
_GOODBYE_S = 30.0
_PROGRAM = ("launch.chat.speaker",)

Result = dict[str, Any]
_Readable = Line | ComputeProcess | Interrupts


class Partner:
    """Answers questions until closed. A context manager: leaving stops both processes.

    `interrupts`: Ctrl-C and SIGTERM, as they come from now on.
    """

    def __init__(self, plan: Plan, timeout_s: float | None) -> None:
        """Start both processes. Raises SidestageError with a sentence."""
        with ExitStack() as opened:
            ours, theirs = socket.socketpair()
            with theirs:
                self._line = Line(ours)
                opened.callback(self._line.close)
                self._compute = opened.enter_context(ComputeProcess(theirs.fileno(), _PROGRAM))
            job, self._keeper = opened.enter_context(own_loader(plan.loader, plan.job, timeout_s))
            self._compute.send(job)
            self.interrupts = opened.enter_context(Interrupts())
            self._opened = opened.pop_all()

    def get_ready(self) -> Result:
        """Wait until the model is loaded; what it says about itself.

        Raises SidestageError with a sentence, KeyboardInterrupt when told to stop.
        """
        return self._await("ready", None)

    def ask(self, messages: Sequence[Message], hear: Callable[[str], None]) -> Result:
        """The answer to the last of `messages`; `hear` is told each piece. Ctrl-C cuts it short.

        Raises ValueError when the model cannot be asked this, SidestageError when it cannot be asked
        any more, KeyboardInterrupt when told twice to stop, or by SIGTERM.
        """
        if signal.SIGTERM in self.interrupts.taken_signals():
            raise KeyboardInterrupt
        self._line.send(messages=list(messages))
        return self._await("done", hear)

    def total(self) -> Result:
        """End the conversation; the counters of all of it. Raises SidestageError."""
        self._line.hang_up()
        until = time.monotonic() + _GOODBYE_S
        while not self._compute.has_ended and time.monotonic() < until:
            if self._compute in self._look([self._compute]):
                self._compute.read()
        result = self._compute.result()
        if self._keeper:
            result["loader_restarts"] = self._keeper.loader.num_restarts
        return result

    def close(self) -> None:
        """Stop both processes. Idempotent."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _await(self, word: str, hear: Callable[[str], None] | None) -> Result:
        """Until compute says `word`. With somebody who hears, the first Ctrl-C cuts the answer short."""
        num_interrupts = 0
        while True:
            ready = self._look([self._line, self._compute, self.interrupts])
            if self.interrupts in ready:
                signals = self.interrupts.taken_signals()
                num_interrupts += len(signals)
                if hear is None or num_interrupts > 1 or signal.SIGTERM in signals:
                    raise KeyboardInterrupt
            if num_interrupts:
                self._compute.drain()  # again and again: it may not have begun to answer yet
            for what in self._line.receive() if self._line in ready else ():
                match what:
                    case {"text": str() as text} if hear:
                        hear(text)
                    case {"refused": str() as sentence}:
                        raise ValueError(sentence)
                    case _ if word in what:
                        return dict(what[word])
            if self._compute in ready:
                self._compute.read()
                if self._compute.has_ended:
                    raise SidestageError(f"the compute process hung up: {self._compute.result()}")

    def _look(self, at: list[_Readable]) -> list[_Readable]:
        """Which of them can be read, after waiting a little; the loader is looked after meanwhile."""
        ready, _, _ = select.select(at, [], [], _LOOK_S)
        if self._keeper:
            self._keeper.look(time.monotonic())
        return ready
