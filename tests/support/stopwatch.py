"""Where the microseconds go: methods of the running program, each charged with its own processor time."""

import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self


class Stopwatch:
    """Watches methods between `with` and its end; `spent_ns` and `calls` by label.

    A watched method that calls another is not charged with it. Of this thread alone, so that neither
    waiting nor other programs count. Costs about a microsecond a call.
    """

    def __init__(self, watched: dict[str, list[tuple[type, str]]]) -> None:
        self.spent_ns: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._watched = watched
        self._inner_ns: list[int] = []
        self._before: list[tuple[type, str, Callable[..., Any]]] = []

    def __enter__(self) -> Self:
        for label, methods in self._watched.items():
            for owner, name in methods:
                method = getattr(owner, name)
                self._before.append((owner, name, method))
                setattr(owner, name, self._timed(method, label))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for owner, name, method in self._before:
            setattr(owner, name, method)

    def clear(self) -> None:
        self.spent_ns.clear()
        self.calls.clear()

    def _timed(self, method: Callable[..., Any], label: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started_ns = time.thread_time_ns()
            self._inner_ns.append(0)
            try:
                return method(*args, **kwargs)
            finally:
                taken_ns = time.thread_time_ns() - started_ns
                self.spent_ns[label] += taken_ns - self._inner_ns.pop()
                self.calls[label] += 1
                if self._inner_ns:
                    self._inner_ns[-1] += taken_ns

        return timed
