"""One run of everything that needs a CUDA device: the benchmark's tables, the link, kernels, the checks.

`make gpu-report`, or `python tests/gpu/report.py FOLDER [--steps A,B] [--routing T.npz] [--shape S]
[--layers N]`, in a source tree, installed or not. Writes gpu-report.json and gpu-report.md into FOLDER
within ten minutes, after every step. A step that fails, or for which no time is left, is written down as
that; the others go on. What matters most comes first, and any step can be run alone.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

TOTAL_S = 570.0
COLUMNS = (
    ("arm", "{}"),
    ("tg_tokens_per_second", "{:.1f}"),
    ("tg_deviation", "{:.1f}"),
    ("pp_tokens_per_second", "{:.0f}"),
    ("hit_rate", "{:.1%}"),
    ("bound", "{}"),
    ("bound_tokens_per_second", "{:.1f}"),
    ("efficiency", "{:.1%}"),
    ("host_share", "{:.1%}"),
)

Json = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Arms side by side, with slots for `share` percent of the experts."""

    share: int
    arms: str
    num_tokens: int = 64
    timeout_s: float = 150.0


#: accelerate's arm brings every expert of most layers for each token: few tokens, and the longest time.
TABLES = {
    "bench-25": Table(25, "resident,resident:3,offload@1,offload@1:3,accelerate", 32, 270.0),
    "bench-10": Table(10, "resident,resident:3,offload@1,offload@1:3"),
    "bench-25-more": Table(25, "resident,resident:3,offload@0,offload@0:3,offload@1:2,transformers"),
    "bench-50": Table(50, "resident,resident:3,offload@0,offload@1,offload@1:3"),
}


@dataclass
class Step:
    """What one step came to. `table`: rows of figures; `error`: why there are none."""

    name: str
    command: str = ""
    seconds: float = 0.0
    error: str = ""
    facts: Json = field(default_factory=dict)
    table: list[Json] = field(default_factory=list)


class Clock:
    """The time that is left for all of it."""

    def __init__(self, total_s: float) -> None:
        self._until_s = time.monotonic() + total_s

    def left_s(self, most_s: float) -> float:
        return min(most_s, self._until_s - time.monotonic())


def run(name: str, argv: Sequence[str], timeout_s: float, read: Callable[[str], Step]) -> Step:
    """Run a command, and read its stdout into a step."""
    if timeout_s < 1:
        return Step(name, " ".join(argv), error="no time was left")
    started_s = time.monotonic()
    try:
        step = _read(_ended(argv, timeout_s), read)
    except subprocess.TimeoutExpired:
        step = Step(name, error=f"not finished within {timeout_s:.0f} s")
    step.name, step.command, step.seconds = name, " ".join(argv), time.monotonic() - started_s
    return step


def _ended(argv: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """The command, to its end. Who is late goes with all of its children: they would hold the device."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        argv, cwd=ROOT, env=_environment(), stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def _environment() -> Mapping[str, str]:
    """This tree's own packages, for children of children too."""
    others = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *others])}


def _read(ended: subprocess.CompletedProcess[str], read: Callable[[str], Step]) -> Step:
    """What its answer says; where there is none, its last words."""
    last_words = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
    try:
        step = read(ended.stdout)
    except (ValueError, KeyError, ElementTree.ParseError, OSError):
        return Step("", error=last_words)
    if not (step.facts or step.table or step.error):
        step.error = last_words
    return step


def checks(clock: Clock, given: argparse.Namespace) -> Step:
    with TemporaryDirectory() as folder:
        path = Path(folder, "checks.xml")
        argv = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", f"--junitxml={path}"]
        return run("checks", argv, clock.left_s(TOTAL_S), lambda _: read_checks(path.read_text()))


def read_checks(xml: str) -> Step:
    """Counts, and a row for each test that failed."""
    suite = next(ElementTree.fromstring(xml).iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    bad = [
        {"test": case.get("name"), "why": (found.get("message") or "").splitlines()[:1]}
        for case in suite.iter("testcase")
        for found in (case.find("failure"), case.find("error"))
        if found is not None
    ]
    step = Step("checks", facts=counts, table=bad)
    if counts["tests"] == counts["skipped"]:
        step.error = "every check was skipped: there is no CUDA device"
    return step


def doctor(clock: Clock, given: argparse.Namespace) -> Step:
    argv = [*sidestage(), "doctor", "--json", "-"]
    return run("doctor", argv, clock.left_s(120), lambda text: Step("", table=json.loads(text)["checks"]))


def model(clock: Clock, given: argparse.Namespace) -> Step:
    return _script("model", clock.left_s(240), given.shape, str(given.layers))


def link(clock: Clock, given: argparse.Namespace) -> Step:
    return _script("link", clock.left_s(90))


def kernel(clock: Clock, given: argparse.Namespace) -> Step:
    return _script("kernel", clock.left_s(150))


def _script(name: str, timeout_s: float, *arguments: str) -> Step:
    """A report of its own, beside this file."""
    argv = [sys.executable, str(Path(__file__).with_name(f"{name}_report.py")), *arguments]
    return run(name, argv, timeout_s, lambda text: Step("", **json.loads(text)))


def bench(name: str, clock: Clock, given: argparse.Namespace) -> Step:
    table = TABLES[name]
    num_slots = max(number_of_experts(given.shape, given.layers) * table.share // 100, 1)
    argv = [*sidestage(), "bench", "--device", "cuda", "--shape", given.shape, "--layers", str(given.layers)]
    argv += ["--slots", str(num_slots), "--arms", table.arms]
    argv += ["--pp", "32", "--tg", str(table.num_tokens), "--repeat", "2", "--json", "-"]
    argv += ["--routing", given.routing] if given.routing else []
    title = f"{name}: slots for {table.share} % of the experts"
    return run(title, argv, clock.left_s(table.timeout_s), lambda t: Step("", table=json.loads(t)["arms"]))


#: In their order.
STEPS: dict[str, Callable[[Clock, argparse.Namespace], Step]] = {
    "doctor": doctor,
    "model": model,
    "bench-25": partial(bench, "bench-25"),
    "link": link,
    "kernel": kernel,
    "bench-10": partial(bench, "bench-10"),
    "bench-25-more": partial(bench, "bench-25-more"),
    "bench-50": partial(bench, "bench-50"),
    "checks": checks,
}


def sidestage() -> list[str]:
    return [sys.executable, "-m", "launch"]


def number_of_experts(shape: str, num_layers: int) -> int:
    sys.path.insert(0, str(ROOT))
    from launch.bench.shapes import config_of

    config = config_of(shape, num_layers)
    return int(config.get("num_experts") or config["num_local_experts"]) * num_layers


def as_markdown(steps: Sequence[Step]) -> str:
    """A section for each step."""
    parts = ["# Report of a CUDA device", ""]
    for step in steps:
        parts += [f"## {step.name}", "", f"`{step.command}`, {step.seconds:.0f} s", ""]
        if step.error:
            parts += [f"**Not measured: {step.error}**", ""]
        parts += [f"- {name}: {value}" for name, value in step.facts.items()]
        parts += [""] if step.facts else []
        parts += [*_table(step), ""] if step.table else []
    return "\n".join(parts)


def _table(step: Step) -> list[str]:
    if step.name.startswith("bench"):
        rows = [[_cell(row, name, form) for name, form in COLUMNS] for row in step.table]
        names = [name.removesuffix("_tokens_per_second") for name, _ in COLUMNS]
    else:
        names = list(dict.fromkeys(name for row in step.table for name in row))
        rows = [[str(row.get(name, "")) for name in names] for row in step.table]
    lines = [names, ["---"] * len(names), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _cell(row: Json, name: str, form: str) -> str:
    if row.get("error"):
        return str(row["arm"] if name == "arm" else row["error"] if name == "bound" else "")
    value = row.get(name)
    return "-" if value is None else form.format(value)


def main() -> int:
    given = _arguments()
    clock = Clock(TOTAL_S)
    given.folder.mkdir(parents=True, exist_ok=True)
    steps: list[Step] = []
    for name in given.steps:
        steps.append(STEPS[name](clock, given))
        sys.stderr.write(f"{steps[-1].name}: {steps[-1].error or 'done'}, {steps[-1].seconds:.0f} s\n")
        Path(given.folder, "gpu-report.json").write_text(
            json.dumps([asdict(step) for step in steps], indent=1)
        )
        Path(given.folder, "gpu-report.md").write_text(as_markdown(steps))
    return 1 if any(step.error for step in steps) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu-report")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=_steps, default=list(STEPS), help=f"of {', '.join(STEPS)}")
    parser.add_argument("--routing")
    parser.add_argument("--shape", default="qwen3-30b-a3b")
    parser.add_argument("--layers", type=int, default=6)
    return parser.parse_args()


def _steps(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in STEPS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no step; allowed: {', '.join(STEPS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
