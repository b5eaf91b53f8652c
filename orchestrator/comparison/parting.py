"""Find the first step in which the records of two runs differ, and the first column.

Runs in `ballast diff`. Records are compared to the bit: trajectories column by column, metrics
number by number. Names, times and loads of machines differ between any two runs and are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.report.curves import meaning
from orchestrator.report.run_record import RunRecord

# In the order in which a step computes them: the first that differs is nearest to the cause.
ORDER = (
    "prompt_uid",
    "group_id",
    "tokens",
    "weight_versions",
    "rollout_logprobs",
    "reward",
    "reward_parts",
    "old_logprobs",
    "old_entropy",
    "ref_logprobs",
    "values",
    "advantages",
    "logprobs",
    "loss_flags",
)
OF_A_RUN = ("run_id", "timings")  # columns that differ between any two runs
CLOCKED = {"s", "tokens/s", "bytes/s"}  # units of what a clock measured
OF_A_MACHINE = (  # areas and names that depend on speed, load, or the number of starts
    "rollout/engines_lost",
    "rollout/groups_resampled",
    "bubble/",
    "publication/copy_frac",
    "rollout/kv_usage",
    "rollout/waiting",
    "rollout/preemptions",
    "rollout/concurrency",
    "ledger/in_flight",
    "checkpoint/",
    "colocation/",
)


@dataclass(frozen=True, kw_only=True)
class Parting:
    """The first step in which two runs differ.

    Example: Parting(step=4, found=("reward differs in 2 of 256 rows; first in row 7: 0.0 | 1.0",))

    Attributes:
        step: its number.
        found: one sentence per column or metric, the first one computed first.
    """

    step: int
    found: tuple[str, ...]


def rollouts_part(left: RunRecord, right: RunRecord) -> Parting | None:
    """Return the first of the steps that both recorded in which a column differs; None if none."""
    for step in sorted(left.rollouts.keys() & right.rollouts.keys()):
        found = differing_columns(left.rollouts[step], right.rollouts[step])
        if found:
            return Parting(step=step, found=tuple(found))
    return None


def differing_columns(left: Path, right: Path) -> list[str]:
    """Return a sentence for every column in which the files of one step differ."""
    ours, theirs = pq.ParquetFile(left), pq.ParquetFile(right)
    sides = [ours.schema_arrow.names, theirs.schema_arrow.names]
    rows = [ours.metadata.num_rows, theirs.metadata.num_rows]
    found = [
        f"{name} is recorded in one run only"
        for name in dict.fromkeys([*sides[0], *sides[1]])
        if (name in sides[0]) != (name in sides[1])
    ]
    if rows[0] != rows[1]:
        return [f"{rows[0]} rows | {rows[1]} rows", *found]
    both = [name for name in sides[0] if name in sides[1] and name not in OF_A_RUN]
    both.sort(key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    differing = []
    for name in both:
        pair = [file.read(columns=[name])[name].combine_chunks() for file in (ours, theirs)]
        if not pair[0].equals(pair[1]) and (told := _describe(name, *pair)):
            differing.append(told)
    return [*differing, *found]


def _describe(name: str, left: pa.Array, right: pa.Array) -> str:
    """Return the sentence about a column; an empty text where only NaN stands against NaN."""
    if left.type != right.type:
        return f"{name} has another type: {left.type} | {right.type}"
    # By their texts, too: Arrow holds no NaN equal to another one.
    rows = [
        row
        for row in range(len(left))
        if not left[row].equals(right[row]) and repr(left[row].as_py()) != repr(right[row].as_py())
    ]
    if not rows:
        return ""
    first = f"first in row {rows[0]}{_first(left[rows[0]].as_py(), right[rows[0]].as_py())}"
    return f"{name} differs in {len(rows)} of {len(left)} rows; {first}"


def _first(left: Any, right: Any) -> str:
    """Return the place and the values of the first difference in a row."""
    if isinstance(left, list) and isinstance(right, list) and not _pairs([*left, *right]):
        if len(left) != len(right):
            return f": {len(left)} tokens | {len(right)} tokens"
        pairs = enumerate(zip(left, right, strict=True))
        at = next(place for place, (ours, theirs) in pairs if repr(ours) != repr(theirs))
        return f", token {at}: {left[at]!r} | {right[at]!r}"
    return f": {_short(left)} | {_short(right)}"


def _pairs(values: Sequence[Any]) -> bool:
    """Return True for the (key, value) pairs of a map column."""
    return bool(values) and isinstance(values[0], tuple)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]} …"


def metrics_part(left: RunRecord, right: RunRecord) -> Parting | None:
    """Return the first of the common steps in which a metric differs; None if none."""
    sides = [_by_step(record) for record in (left, right)]
    for step in sorted(sides[0].keys() & sides[1].keys()):
        ours, theirs = sides[0][step], sides[1][step]
        names = sorted({*ours, *theirs} - {"step"})
        found = [
            f"{name}: {ours.get(name)} | {theirs.get(name)}"
            for name in names
            if is_reproducible(name) and repr(ours.get(name)) != repr(theirs.get(name))
        ]
        if found:
            return Parting(step=step, found=tuple(found))
    return None


def is_reproducible(name: str) -> bool:
    """Return True for a metric that an equal run on another machine repeats."""
    return meaning(name)["unit"] not in CLOCKED and not name.startswith(OF_A_MACHINE)


def _by_step(record: RunRecord) -> Mapping[int, Mapping[str, Any]]:
    """Return step -> all metrics of it, those of an evaluation after it among them."""
    found: dict[int, dict[str, Any]] = {}
    for line in (*record.steps, *record.evaluations):
        found.setdefault(int(line["step"]), {}).update(line)
    return found


def common_steps(left: RunRecord, right: RunRecord) -> list[int]:
    """Return the numbers of the steps that both runs finished, in order."""
    sides = [{int(line["step"]) for line in record.steps} for record in (left, right)]
    return sorted(sides[0] & sides[1])
