"""`sidestage run`: a prompt in, text out, and a summary of what the experts did.

stdout carries the text, or with `--json -` one JSON object, and nothing else; all the rest goes to
stderr.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from launch.config import RunConfig
from launch.log import log_to_stderr
from launch.options import INTERRUPTED
from launch.output import check_place, write_json
from launch.plan import Plan, plan_run
from launch.summary import as_json, summary_lines
from launch.supervisor import Outcome, supervise
from protocol.timeline import merge

#: A beginning from the shipped model's own world; as good as any for another model.
DEFAULT_PROMPT = "Once upon a time there was a king who"


def run_model(config: RunConfig) -> int:
    """Do what `config` says; the exit status. Raises SidestageError or ValueError with a sentence."""
    log_to_stderr()
    _check_places(config)
    plan = plan_run(config, _prompt(config))
    for line in (plan.headline, *plan.notices, *config.ignored(), f"prompt: {plan.job.prompt}"):
        _tell(line)
    outcome = _supervised(plan, config)
    result = {**outcome.result, **_decided(plan)}
    if config.json is not None:
        write_json(config.json, as_json(result))
    for line in summary_lines(result):
        _tell(line)
    return INTERRUPTED if outcome.was_interrupted else 0


def _check_places(config: RunConfig) -> None:
    check_place("--json", config.json)
    check_place("--timeline", config.timeline)
    if config.timeline == "-":
        raise ValueError("--timeline writes a file: name one, such as trace.json")


def _prompt(config: RunConfig) -> str:
    if config.prompt == "-":
        return sys.stdin.read()
    return DEFAULT_PROMPT if config.prompt is None else config.prompt


def _supervised(plan: Plan, config: RunConfig) -> Outcome:
    own = plan.loader
    if config.timeline is None:
        return supervise(plan.job, own, config.timeout)
    with TemporaryDirectory(prefix="sidestage-timeline-") as folder:
        parts = [Path(folder, "compute.json"), Path(folder, "loader.json")]
        job = replace(plan.job, timeline=str(parts[0]))
        outcome = supervise(job, replace(own, timeline=parts[1]) if own else None, config.timeout)
        missing = merge(parts if own else parts[:1], config.timeline)
    for part in missing:
        _tell(f"the timeline lacks the {part.stem} process: it did not live to write its part")
    return outcome


def _decided(plan: Plan) -> Mapping[str, object]:
    """What was decided here and not in the compute process."""
    if not plan.reason:
        return {}
    return {"arrangement_reason": plan.reason, "slots_reason": plan.slots_reason}


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
