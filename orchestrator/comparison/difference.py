"""Describe the differences of two runs: settings, versions, data, records, and final metrics.

Runs in `ballast diff`. The comparison of records is in `parting.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.comparison.parting import (
    Parting,
    common_steps,
    is_reproducible,
    metrics_part,
    rollouts_part,
)
from orchestrator.report.differences import differences
from orchestrator.report.run_record import RunRecord
from orchestrator.telemetry.counting import counted

MOST = 8  # differing columns or metrics that are named
FINAL = (
    "reward/mean",
    "eval/mean",
    "policy/entropy",
    "mismatch/abs_mean",
    "rollout/response_tokens_mean",
    "time/step_s",
)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two runs compared.

    Attributes:
        equal: the records of both are equal to the bit, and of equally many steps.
        text: what `ballast diff` prints.
    """

    equal: bool
    text: str


def compare_two(left: RunRecord, right: RunRecord) -> Difference:
    """Compare two runs.

    Raises:
        ValueError: one of them has no finished step, or they have none in common.
    """
    for record in (left, right):
        if not record.steps:
            raise ValueError(f"{record.folder} has no finished step: there is nothing to compare")
    common = common_steps(left, right)
    if not common:
        raise ValueError(f"{left.folder} and {right.folder} have no step in common")
    rollouts, metrics = rollouts_part(left, right), metrics_part(left, right)
    recorded = sorted(left.rollouts.keys() & right.rollouts.keys())
    lengths = [len(record.steps) for record in (left, right)]
    # Equal metrics alone are no equal trajectories: two runs that recorded none are not called so.
    equal = rollouts is None and metrics is None and lengths[0] == lengths[1] and bool(recorded)
    sections = [
        _settings(left, right),
        _records("rollouts", rollouts, recorded),
        _records("metrics", metrics, common),
        _final(left, right),
        _conclusion(lengths, rollouts, metrics, recorded),
    ]
    return Difference(equal=equal, text="\n".join(sections))


def _settings(left: RunRecord, right: RunRecord) -> str:
    rows = differences([left, right])
    if not rows:
        return "settings, versions and data are equal"
    width = max(len(row["key"]) for row in rows)
    lines = []
    for row in rows:
        ours, theirs = ("-" if value is None else value for value in row["values"])
        lines.append(f"  {row['key']:<{width}}  {ours} | {theirs}")
    return "\n".join([f"settings, versions and data: {counted(len(rows), 'difference')}", *lines])


def _records(name: str, parting: Parting | None, steps: list[int]) -> str:
    if not steps:
        return f"{name} can't be compared: no step of them is recorded in both runs"
    if parting is None:
        return f"{name} are equal to the bit in steps {steps[0]} to {steps[-1]}"
    before = [step for step in steps if step < parting.step]
    equal = f"equal in steps {before[0]} to {before[-1]}, " if before else ""
    lines = [f"{name}: {equal}different from step {parting.step} on"]
    lines += [f"  {one}" for one in parting.found[:MOST]]
    if len(parting.found) > MOST:
        lines.append(f"  and {len(parting.found) - MOST} more")
    return "\n".join(lines)


def _final(left: RunRecord, right: RunRecord) -> str:
    """Return the last value of some metrics in each run, and their difference."""
    lines = [f"{'last values':<30}{left.name[:14]:>15}{right.name[:14]:>15}{'difference':>15}"]
    for name in FINAL:
        values = [_last(record, name) for record in (left, right)]
        if None in values:
            continue
        ours, theirs = (float(str(value)) for value in values)
        note = "" if is_reproducible(name) else "  (of the clock)"
        lines.append(f"  {name:<28}{ours:>15.6g}{theirs:>15.6g}{theirs - ours:>+15.3g}{note}")
    return "\n".join(lines)


def _last(record: RunRecord, name: str) -> float | None:
    lines = record.evaluations if name.startswith("eval/") else record.steps
    found = [line[name] for line in lines if line.get(name) is not None]
    return float(found[-1]) if found else None


def _conclusion(
    lengths: list[int], rollouts: Parting | None, metrics: Parting | None, recorded: list[int]
) -> str:
    partings = [one.step for one in (rollouts, metrics) if one is not None]
    if partings:
        return f"the runs part in step {min(partings)}"
    if lengths[0] != lengths[1]:
        return f"equal as far as both go; the runs have {lengths[0]} and {lengths[1]} steps"
    if not recorded:
        return "equal metrics; without recorded rollouts equal bits are not shown"
    return f"the runs are equal to the bit, in {counted(lengths[0], 'step')}"
