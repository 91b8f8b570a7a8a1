"""`sidestage plan` at work: study, propose, tell and save. Imports torch when it studies, reads no weight."""

import json as json_text
import sys

from launch.log import log_to_stderr
from launch.output import check_place, write_json, write_whole
from launch.planning.config import PlanConfig
from launch.planning.proposal import propose
from launch.planning.telling import as_json, command_of, lines_of, settings_of, toml_of
from protocol.arena import available_memory_bytes


def plan(config: PlanConfig) -> None:
    """Raises ValueError, ModelError or StoreError with a sentence; what does not fit is no error."""
    log_to_stderr()
    check_place("--json", config.json)
    check_place("--save", config.save)
    from launch.planning.subject import subject_of

    subject = subject_of(config.model, config.quantization, config.context)
    proposal = propose(config, subject, available_memory_bytes())
    settings = settings_of(config, proposal)
    if config.save is not None:
        if not settings:
            raise ValueError(f"nothing is saved, for nothing fits: {proposal.problem}")
        write_whole(config.save, toml_of(settings, proposal).encode())
    if config.json is not None:
        write_json(config.json, json_text.dumps(as_json(config, proposal)))
    out = sys.stderr if config.json == "-" else sys.stdout
    out.writelines(f"{line}\n" for line in (*lines_of(proposal), *proposal.notices))
    if settings:
        out.write(f"\n{command_of(settings)}\n")
