"""Prompts that wait for their turn in the compute process, in order of arrival.

One thread puts, another takes; whoever waits here can still be taken out. Knows no model.
"""

import threading
from collections import deque

from launch.server.prompts import Prompt


class Waiting:
    """A line of prompts."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._prompts: deque[Prompt] = deque()
        self._is_closed = False
        self._failure: BaseException | None = None

    def put(self, prompt: Prompt) -> None:
        """To the end of the line."""
        with self._changed:
            self._prompts.append(prompt)
            self._changed.notify()

    def take(self, limit: int) -> list[Prompt]:
        """The first `limit` prompts, once there is one; none after `close`. Raises what `fail` was told."""
        with self._changed:
            self._changed.wait_for(lambda: self._prompts or self._is_closed)
            if self._failure:
                raise self._failure
            if self._is_closed:
                return []
            return [self._prompts.popleft() for _ in range(min(limit, len(self._prompts)))]

    def remove(self, prompt: Prompt) -> bool:
        """Take it out; False when it does not wait here any more."""
        with self._changed:
            if not any(one is prompt for one in self._prompts):
                return False
            self._prompts = deque(one for one in self._prompts if one is not prompt)
            return True

    def close(self) -> None:
        """Nobody waits any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def fail(self, error: BaseException) -> None:
        """Nobody can be answered any more, for this reason."""
        with self._changed:
            self._failure = self._failure or error
        self.close()
