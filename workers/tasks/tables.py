"""Product of every task: a train and a held-out table, and their Parquet files.

Columns: `prompt` (string, or list of {role, content} messages), `ground_truth` (string), `dataset`
(string), plus what a task's reward needs. Data flows from a task's table function through
`build_folder` to `train.parquet` and `eval.parquet` in one folder. Runs in the driver and in
`ballast data`. Generates no prompt.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workers.models.cache import build_once, default_path

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
IMAGE_COLUMN = "image"  # of tasks with pictures
GROUP_BYTES = 4 << 20  # of their row groups
TRAIN_FILE, EVAL_FILE = "train.parquet", "eval.parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskTables:
    """Prompts of a task; no row of one table is in the other.

    Worked example, one row of a train table:
        prompt "3142="    ground_truth "1234"    dataset "sort_4"
    """

    train: pa.Table
    heldout: pa.Table


def text_table(dataset: str, rows: Sequence[tuple[str, str]]) -> pa.Table:
    """Make a table of plain-text prompts from (prompt, ground truth) pairs."""
    return pa.table(
        {
            "prompt": pa.array([prompt for prompt, _ in rows], pa.string()),
            "ground_truth": pa.array([truth for _, truth in rows], pa.string()),
            "dataset": pa.array([dataset] * len(rows), pa.string()),
        }
    )


def write_parquet(table: pa.Table, path: str | Path) -> Path:
    """Write a table beside its place, then rename it there; return the absolute path."""
    target = Path(path).expanduser().absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    # A reader keeps row groups whole: few rows a group where they hold files.
    row_bytes = max(1, table.nbytes // max(1, table.num_rows))
    rows = max(1, GROUP_BYTES // row_bytes) if IMAGE_COLUMN in table.column_names else None
    try:
        pq.write_table(table, temporary, row_group_size=rows)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def build_folder(
    parent: str | Path | None, recipe: Mapping[str, Any], make: Callable[[], TaskTables]
) -> Path:
    """Write both tables of a task into a folder of their own, unless it is already there.

    Args:
        parent: where the folder goes (the cache if None). Its name is `recipe["task"]` and a hash
            of the recipe, so other arguments make another folder.
        recipe: the task's name under "task" and all of its arguments, JSON values only.
        make: makes the tables.

    Returns:
        The folder, absolute, with `train.parquet` and `eval.parquet`.

    Raises:
        ValueError: a table is empty.
    """

    def write(folder: Path) -> None:
        tables = make()
        for name, table in ((TRAIN_FILE, tables.train), (EVAL_FILE, tables.heldout)):
            if table.num_rows == 0:
                raise ValueError(f"{name} would be empty with {dict(recipe)}: ask for more prompts")
            write_parquet(table, folder / name)

    place = default_path(recipe, str(recipe["task"]), "data")
    return build_once(Path(parent) / place.name if parent is not None else place, recipe, write)
