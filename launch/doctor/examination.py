"""Runs every check and reports: a line for each finding, or one JSON object; 1 if one failed."""

import json as json_text
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from launch.doctor.checks import SECTIONS
from launch.doctor.finding import Finding, line_of
from launch.doctor.leftovers import clean
from launch.doctor.stores import store_integrity
from launch.output import check_place, write_json


def examine(*, json: str | None, store: str | None, cleans: bool) -> int:
    """The exit status. `cleans`: leftovers are removed first. Raises ValueError for a wrong place."""
    check_place("--json", json)
    findings = []
    for finding in _findings(Path(store).expanduser() if store else None, cleans):
        findings.append(finding)
        if json != "-":
            sys.stdout.write(line_of(finding) + "\n")
    is_healthy = all(finding.status != "fail" for finding in findings)
    if json is not None:
        write_json(json, json_text.dumps({"ok": is_healthy, "checks": [asdict(f) for f in findings]}))
    return 0 if is_healthy else 1


def _findings(store: Path | None, cleans: bool) -> Iterator[Finding]:
    if cleans:
        yield from clean()
    for section in SECTIONS:
        yield from section()
    if store is not None:
        yield store_integrity(store)
