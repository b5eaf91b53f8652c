"""Prompt files made from a local copy of Countdown: reach a number from several others.

The column `entry` is reasoning-gym's, whose scorer (`reward=reasoning_gym`) computes the expression
of a response; a row has no ground truth. Runs in the driver and in `ballast data`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workers.tasks.copy_files import digest_of, read_rows
from workers.tasks.local_copy import split_rows
from workers.tasks.tables import TaskTables, build_folder

COLUMNS = ("nums", "target")
QUESTION = (
    "Using the numbers {numbers}, write an expression that equals {target}. Use +, -, * and /, and "
    "every number exactly once. Put the expression, without an equals sign, into <answer></answer>."
)


def countdown(source: str | Path, *, num_heldout: int = 128, seed: int = 0) -> TaskTables:
    """Make both tables of a file or folder with columns `nums` and `target`.

    Raises:
        ValueError: a source that is missing or lacks a column, or has too few rows.
    """
    rows = []
    entries = {}
    for row in read_rows(source, COLUMNS):
        numbers, target = [int(each) for each in row["nums"]], int(row["target"])
        question = QUESTION.format(numbers=", ".join(map(str, numbers)), target=target)
        entries[question] = json.dumps(
            {
                "dataset": "countdown",
                "config": {},
                "question": question,
                "answer": "",
                "metadata": {"numbers": numbers, "target": target},
            }
        )
        rows.append(([{"role": "user", "content": question}], None))
    return split_rows(
        rows,
        None,
        "countdown",
        num_heldout=num_heldout,
        seed=seed,
        source=source,
        more=lambda messages: {"entry": entries[messages[0]["content"]]},
    )


def build_countdown(
    folder: str | Path | None = None, *, source: str, num_heldout: int = 128, seed: int = 0
) -> Path:
    """Write `countdown(...)` under `folder`, once per content of the source; return the folder."""
    arguments: dict[str, Any] = {"num_heldout": num_heldout, "seed": seed}
    recipe = {"task": "countdown", **arguments, "sources": [digest_of(source)]}
    return build_folder(folder, recipe, lambda: countdown(source, **arguments))
