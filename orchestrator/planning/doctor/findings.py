"""What a check says: one finding, with its remedy where something is to be done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"  # the run works, worse than it could
    FAULT = "FAULT"  # the run could not work


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report.

    Attributes:
        level: how much it matters.
        subject: what was looked at, a word or two.
        text: what was found.
        remedy: what to do; empty for `OK` only.
    """

    level: Level
    subject: str
    text: str
    remedy: str = ""

    def __post_init__(self) -> None:
        assert (self.level is Level.OK) == (not self.remedy), "every finding has its remedy"


def ok(subject: str, text: str) -> Finding:
    """Nothing to do."""
    return Finding(level=Level.OK, subject=subject, text=text)


def note(subject: str, text: str, remedy: str) -> Finding:
    """Worth knowing."""
    return Finding(level=Level.NOTE, subject=subject, text=text, remedy=remedy)


def fault(subject: str, text: str, remedy: str) -> Finding:
    """In the way of the run."""
    return Finding(level=Level.FAULT, subject=subject, text=text, remedy=remedy)


def faults(findings: Sequence[Finding]) -> list[Finding]:
    """Those in the way of the run."""
    return [finding for finding in findings if finding.level is Level.FAULT]


def table(findings: Sequence[Finding]) -> str:
    """A line per finding, its remedy below it."""
    width = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:<6}{finding.subject:<{width}}  {finding.text}")
        if finding.remedy:
            lines.append(f"{'':<6}{'':<{width}}  -> {finding.remedy}")
    return "\n".join(lines)
