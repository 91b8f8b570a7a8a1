"""`sidestage serve` as a real process, and a client that says what it likes."""

import http.client
import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from support.cli import SIDESTAGE

PROMPT = "Once upon a time there was a king who"
KEY = "a key of the tests"

_START_S = 100.0


class Server:
    """A server under way; `log` is everything it wrote to stderr so far."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log
        self.url = self._await(r"(http://\S+) is open")
        self.port = int(self.url.rpartition(":")[2])
        # A connection for each request: none stays open that a look at the server's fds would count.
        self.client = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=60.0,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def await_ready(self) -> None:
        self._await(r"ready: (http://\S+)")

    def health(self) -> int:
        return self.client.get("/health").status_code

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def complete(self, **body: Any) -> dict[str, Any]:
        """A greedy completion of PROMPT, unless said otherwise; the whole answer."""
        answer = self.post("/v1/completions", **{"prompt": PROMPT, "temperature": 0, **body})
        assert answer.status_code == 200, answer.text
        parsed = answer.json()
        assert isinstance(parsed, dict)
        return parsed

    def text(self, **body: Any) -> str:
        return str(self.complete(**body)["choices"][0]["text"])

    def figures(self) -> dict[str, float]:
        """/metrics, by name; labels stay part of the name."""
        lines = self.client.get("/metrics").text.splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def await_figure(self, name: str, value: float, timeout_s: float = 30.0) -> None:
        until = time.monotonic() + timeout_s
        while self.figures().get(name) != value:
            assert time.monotonic() < until, f"{name} does not become {value}: {self.figures().get(name)}"
            time.sleep(0.02)

    def child(self, word: str) -> psutil.Process:
        """The child whose command line has `word` in it."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if word in child.cmdline())

    def _await(self, pattern: str) -> str:
        until = time.monotonic() + _START_S
        while not (found := re.search(pattern, self.log)):
            assert self.process.poll() is None, f"it has ended: {self.log}"
            assert time.monotonic() < until, f"no {pattern!r} in {self.log}"
            time.sleep(0.02)
        return found[1]


class RawStream:
    """A streamed answer read event by event, which can be left at any time."""

    def __init__(self, server: Server, path: str = "/v1/completions", **body: Any) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60.0)
        content = json.dumps({"prompt": PROMPT, "temperature": 0, "stream": True, **body})
        self._connection.request(
            "POST", path, content, {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        )
        self._answer = self._connection.getresponse()
        self.status = self._answer.status

    def events(self) -> Iterator[dict[str, Any]]:
        """Every event until [DONE], or the stream's end."""
        for line in self._answer:
            if line.startswith(b"data: {"):
                yield json.loads(line.removeprefix(b"data: "))
            elif line == b"data: [DONE]\n":
                return

    def body(self) -> bytes:
        return self._answer.read()

    def leave(self) -> None:
        """Close the connection, wherever it is."""
        self._answer.close()
        self._connection.close()


@contextmanager
def serving(folder: Path, *arguments: str | Path) -> Iterator[Server]:
    """`sidestage serve ARGUMENTS` on a free port, killed at the end if it still runs; not awaited."""
    log = folder / "serve.log"
    argv = [*SIDESTAGE, "serve", *map(str, arguments), "--port", "0", "--threads", "1"]
    with (
        log.open("wb") as file,
        subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=file) as process,
    ):
        try:
            yield Server(process, log)
        finally:
            process.terminate()
            try:
                process.wait(30)
            finally:
                process.kill()
