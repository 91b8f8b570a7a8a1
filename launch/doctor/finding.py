"""What a check answers, and how that reads. A section is a function that yields findings.

A check changes nothing that it does not put back, and imports no torch. (Whoever makes a socket folder
clears away those of dead loaders, and so does the check that tries it.)
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`fix` says what to do about anything but "ok"."""

    name: str
    status: Status
    text: str
    fix: str = ""


#: Looks at one thing after the other.
Section = Callable[[], Iterable[Finding]]


def line_of(finding: Finding) -> str:
    """`ok    memory: ...`, with the way to fix it behind an arrow."""
    fix = f" -> {finding.fix}" if finding.fix else ""
    return f"{finding.status:<5} {finding.name}: {finding.text}{fix}"
