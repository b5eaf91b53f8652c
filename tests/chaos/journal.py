"""Trials and runs of chaos, as a journal holds them and a table shows them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass

from orchestrator.telemetry.counting import counted


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One fault and what came of it."""

    seed: int
    arrangement: str
    role: str
    fault: str
    outcome: str  # went on, resumed, or hung
    seconds: float  # to the next step but one


@dataclass(frozen=True, kw_only=True)
class Played:
    """One run of chaos, as the journal holds it.

    Attributes:
        seed: of the run.
        trials: its trials.
        wrong: what its checks found, one sentence each.
    """

    seed: int
    trials: list[Trial]
    wrong: list[str]

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def read(cls, line: str) -> Played:
        read = json.loads(line)
        trials = [Trial(**trial) for trial in read["trials"]]
        return cls(seed=read["seed"], trials=trials, wrong=read["wrong"])


def table(trials: list[Trial], wrong: list[str], num_runs: int) -> str:
    """Format the trials by process and fault."""
    lines = ["| process | fault | trials | went on | ended, resumed | median s |"]
    lines.append("|---|---|--:|--:|--:|--:|")
    for role, fault in sorted({(trial.role, trial.fault) for trial in trials}):
        own = [trial for trial in trials if (trial.role, trial.fault) == (role, fault)]
        outcomes = Counter(trial.outcome for trial in own)
        seconds = sorted(trial.seconds for trial in own)[len(own) // 2]
        lines.append(
            f"| {role} | {fault} | {len(own)} | {outcomes['went on']} | {outcomes['resumed']} | "
            f"{seconds:.0f} |"
        )
    arrangements = sorted(Counter(trial.arrangement for trial in trials).items())
    shown = ", ".join(f"{count} {name}" for name, count in arrangements)
    totals = [
        counted(len(trials), "trial"),
        counted(num_runs, "run"),
        counted(len(wrong), "violation"),
    ]
    lines.append("")
    lines.append(f"{totals[0]} in {totals[1]}, {totals[2]}. By arrangement: {shown}.")
    return "\n".join(lines)
