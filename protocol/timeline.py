"""Timeline: what a process did when, as Chrome trace events on the clock that all processes share.

Spans and flow arrows are kept in memory, up to a bound whose overrun is said in the file, and
written once at the end. Knows nothing of experts; a caller without a timeline holds None.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

FlowPhase = Literal["s", "t", "f"]

MAX_EVENTS = 1_000_000


class Timeline:
    """Events of this process, in named tracks. Any thread may add to it."""

    def __init__(self, process_name: str, max_events: int = MAX_EVENTS) -> None:
        self.process_name = process_name
        self.num_dropped = 0
        self._max_events = max_events
        self._pid = os.getpid()
        self._spans: list[tuple[str, str, int, int, dict[str, object]]] = []
        self._flows: list[tuple[FlowPhase, int, str, int]] = []

    def span(self, name: str, track: str, start_ns: int, end_ns: int, **args: object) -> None:
        """`name` lasted from `start_ns` to `end_ns` (time.monotonic_ns)."""
        if self._has_room():
            self._spans.append((name, track, start_ns, end_ns, args))

    def flow(self, phase: FlowPhase, flow_id: int, track: str, ts_ns: int) -> None:
        """An arrow starts ("s"), passes ("t") or ends ("f") in the span of `track` that holds `ts_ns`."""
        if self._has_room():
            self._flows.append((phase, flow_id, track, ts_ns))

    @contextmanager
    def measure(self, name: str, track: str, **args: object) -> Iterator[None]:
        """A span around the body."""
        start_ns = time.monotonic_ns()
        try:
            yield
        finally:
            self.span(name, track, start_ns, time.monotonic_ns(), **args)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON list of trace events; the file appears whole or not at all."""
        _write_json(Path(path), self._events())

    def _has_room(self) -> bool:
        if len(self._spans) + len(self._flows) < self._max_events:
            return True
        self.num_dropped += 1
        return False

    def _events(self) -> list[dict[str, Any]]:
        spans, flows = list(self._spans), list(self._flows)
        tracks = dict.fromkeys([span[1] for span in spans] + [flow[2] for flow in flows])
        thread_of = {track: thread for thread, track in enumerate(tracks, start=1)}
        return [
            self._named("process_name", 0, name=self.process_name),
            self._named("dropped_events", 0, dropped=self.num_dropped),
            *(self._named("thread_name", thread, name=track) for track, thread in thread_of.items()),
            *(
                self._event("X", name, thread_of[track], start, dur=(end - start) / 1000, args=args)
                for name, track, start, end, args in spans
            ),
            *(
                self._event(phase, "expert", thread_of[track], ts, cat="expert", id=flow_id, bp="e")
                for phase, flow_id, track, ts in flows
            ),
        ]

    def _event(self, phase: str, name: str, thread: int, ts_ns: int, **more: object) -> dict[str, Any]:
        return {"ph": phase, "name": name, "ts": ts_ns / 1000, "pid": self._pid, "tid": thread, **more}

    def _named(self, kind: str, thread: int, **args: object) -> dict[str, Any]:
        return {"ph": "M", "name": kind, "pid": self._pid, "tid": thread, "args": args}


def merge(paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> list[Path]:
    """Join the files that processes wrote into one trace, `{"traceEvents": [...]}`.

    Returns the paths of those that are missing (a killed process writes none). Raises ValueError
    for a file that is no timeline.
    """
    events: list[Any] = []
    missing = []
    for path in map(Path, paths):
        try:
            part = json.loads(path.read_bytes())
        except FileNotFoundError:
            missing.append(path)
            continue
        if not isinstance(part, list):
            raise ValueError(f"{path} is not a timeline: a JSON list of events is expected")
        events += part
    _write_json(Path(out), {"traceEvents": events})
    return missing


def _write_json(path: Path, value: object) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(value, separators=(",", ":")))
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
