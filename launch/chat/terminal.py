"""Where a chat takes its lines from, and where it writes.

On a terminal: a prompt, line editing, a dim status. Otherwise lines come in and answers go out:
stdout carries the answers and nothing else, all the rest goes to stderr.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

from launch.interrupts import Interrupts, Terminated

_PROMPT = "> "
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


class Terminal:
    """stdin, stdout and stderr. `is_quiet`: stdout belongs to somebody else."""

    def __init__(self, is_quiet: bool) -> None:
        self.is_interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self._is_quiet = is_quiet
        self._is_dim = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        if self.is_interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - gives input() its line editing

    def lines(self, interrupts: Interrupts) -> Iterator[str]:
        """What the user writes, line by line, until Ctrl-D or the end of the input.

        Raises KeyboardInterrupt when told to stop.
        """
        while True:
            try:
                line = self._read(interrupts)
            except EOFError:
                if self.is_interactive:
                    self.say("\n")
                return
            if line.strip():
                yield line

    def say(self, text: str) -> None:
        """A piece of an answer. Raises BrokenPipeError when nobody reads any more."""
        if not self._is_quiet:
            sys.stdout.write(text)
            sys.stdout.flush()

    def note(self, line: str) -> None:
        """What is not the model's."""
        sys.stderr.write(f"{_DIM}{line}{_PLAIN}\n" if self._is_dim else f"{line}\n")

    def _read(self, interrupts: Interrupts) -> str:
        """One line. Ctrl-C throws away what was being written; without a terminal it ends the program."""
        while True:
            try:
                return interrupts.during(self._next_line)
            except KeyboardInterrupt as interrupt:
                if not self.is_interactive or isinstance(interrupt, Terminated):
                    raise
                self.say("\n")
                self.note("/exit or Ctrl-D leaves")

    def _next_line(self) -> str:
        if self.is_interactive:
            return input(_PROMPT)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")
