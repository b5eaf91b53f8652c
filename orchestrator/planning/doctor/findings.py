"""Hold the result of a check: one finding, with its remedy unless all is well.

Runs in the process of the command. The checks themselves are in the other modules of this folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """Severity of a finding."""

    OK = "ok"
    NOTE = "note"  # the run works, worse than it could
    FAULT = "FAULT"  # the run could not work


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report.

    Attributes:
        level: severity.
        subject: the checked thing, in a word or two.
        text: the observation.
        remedy: the action to take; empty for `OK` only.
    """

    level: Level
    subject: str
    text: str
    remedy: str = ""

    def __post_init__(self) -> None:
        assert (self.level is Level.OK) == (not self.remedy), "every finding has its remedy"


def ok(subject: str, text: str) -> Finding:
    """Make a finding without anything to do."""
    return Finding(level=Level.OK, subject=subject, text=text)


def note(subject: str, text: str, remedy: str) -> Finding:
    """Make a finding about a run that works, but worse than it could."""
    return Finding(level=Level.NOTE, subject=subject, text=text, remedy=remedy)


def fault(subject: str, text: str, remedy: str) -> Finding:
    """Make a finding that prevents the run."""
    return Finding(level=Level.FAULT, subject=subject, text=text, remedy=remedy)


def faults(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings that prevent the run."""
    return [finding for finding in findings if finding.level is Level.FAULT]


def table(findings: Sequence[Finding]) -> str:
    """Format a line per finding, with its remedy on a line below."""
    width = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:<6}{finding.subject:<{width}}  {finding.text}")
        if finding.remedy:
            lines.append(f"{'':<6}{'':<{width}}  -> {finding.remedy}")
    return "\n".join(lines)
