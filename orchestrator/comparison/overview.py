"""Make a table of several runs: final and best results, cost, samples to a goal.

Runs in `ballast compare`. A run is one row; nothing is compared to the bit here.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.report.run_record import RunRecord, is_run

LAST = 5  # steps over which the final reward is a mean, as on the last page of a run


def runs_in(folders: Sequence[Path]) -> list[Path]:
    """Return the runs that folders are or hold, each once, those of one folder by name.

    Raises:
        ValueError: a folder neither is a run nor holds one.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        inner = sorted(folder.iterdir()) if folder.is_dir() else []
        runs = [folder] if is_run(folder) else [path for path in inner if is_run(path)]
        if not runs:
            raise ValueError(
                f"{folder} is no run and holds none; name run folders, or the output_dir of runs"
            )
        found |= dict.fromkeys(runs)
    return list(found)


def row(record: RunRecord, *, goal: float | None) -> dict[str, Any]:
    """Return the row of one run; None where the run has no such number.

    Args:
        record: of the run.
        goal: score to reach, in `eval/mean` where the run evaluates, else in `reward/mean`; None
            leaves the column out.
    """
    rewards = [(int(line["step"]), line["reward/mean"]) for line in _with(record, "reward/mean")]
    scores = [(int(line["step"]), line["eval/mean"]) for line in record.evaluations]
    best = max(scores or rewards, key=lambda pair: pair[1], default=(None, None))
    found = {
        "run": record.name,
        "algorithm": record.setting("algorithm.name"),
        "state": record.state,
        "steps": len(record.steps),
        "reward": _mean([value for _, value in rewards[-LAST:]]),
        "held-out": scores[-1][1] if scores else None,
        "best": best[1],
        "best at step": best[0],
    }
    if goal is not None:
        found["samples to goal"] = samples_to(record, scores if len(scores) > 1 else rewards, goal)
    return found | {
        "samples": _sum(record, "rollout/sequences"),
        "tokens": _sum(record, "rollout/tokens"),
        "seconds": _sum(record, "time/step_s"),
    }


def samples_to(record: RunRecord, curve: Sequence[tuple[int, float]], goal: float) -> float | None:
    """Return the samples trained up to the first point of a curve at the goal; None without one."""
    step = next((step for step, value in curve if value >= goal), None)
    if step is None:
        return None
    before = [line for line in record.steps if int(line["step"]) <= step]
    return float(sum(line.get("rollout/sequences", 0.0) for line in before))


def _with(record: RunRecord, name: str) -> list[Mapping[str, Any]]:
    return [line for line in record.steps if line.get(name) is not None]


def _sum(record: RunRecord, name: str) -> float:
    return float(sum(line.get(name) or 0.0 for line in record.steps))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of equal keys as aligned text."""
    cells = [list(rows[0]), *([_cell(value) for value in one.values()] for one in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
        first = f"{line[0]:<{widths[0]}}"
        rest = (f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        lines.append("  ".join([first, *rest]))
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    return str(value)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of equal keys as CSV, with full numbers; an absent one is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")
