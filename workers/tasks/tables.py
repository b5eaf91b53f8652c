"""What every task produces: a train and a held-out table, and their Parquet files.

Columns: `prompt` (string, or list of {role, content} messages), `ground_truth` (string), `dataset`
(string), plus what a task's reward needs. Data flows from a task's table function through
`build_files` to `train.parquet` and `heldout.parquet` in one folder.
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
TRAIN_FILE, HELDOUT_FILE = "train.parquet", "heldout.parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskTables:
    """The prompts of a task; no row of one table is in the other."""

    train: pa.Table
    heldout: pa.Table


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFiles:
    """The same on disk."""

    train: Path
    heldout: Path


def text_table(dataset: str, rows: Sequence[tuple[str, str]]) -> pa.Table:
    """Makes a table of plain-text prompts from (prompt, ground truth) pairs."""
    return pa.table(
        {
            "prompt": pa.array([prompt for prompt, _ in rows], pa.string()),
            "ground_truth": pa.array([truth for _, truth in rows], pa.string()),
            "dataset": pa.array([dataset] * len(rows), pa.string()),
        }
    )


def write_parquet(table: pa.Table, path: str | Path) -> Path:
    """Writes a table beside its place, then renames it there; returns the absolute path."""
    target = Path(path).expanduser().absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        pq.write_table(table, beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    return target


def build_files(
    path: str | Path | None, recipe: Mapping[str, Any], make: Callable[[], TaskTables]
) -> TaskFiles:
    """Writes both tables of a task into one folder, unless that folder is already there.

    Args:
        path: the folder; if None, one in the cache named after `recipe["task"]` and the recipe.
        recipe: the task's name under "task" and all of its arguments, JSON values only.
        make: makes the tables.

    Raises:
        ValueError: `path` holds the files of another recipe, or a table is empty.
    """

    def write(folder: Path) -> None:
        tables = make()
        for name, table in ((TRAIN_FILE, tables.train), (HELDOUT_FILE, tables.heldout)):
            if table.num_rows == 0:
                raise ValueError(f"{name} would be empty with {dict(recipe)}: ask for more prompts")
            write_parquet(table, folder / name)

    folder = build_once(path or default_path(recipe, str(recipe["task"]), "data"), recipe, write)
    return TaskFiles(train=folder / TRAIN_FILE, heldout=folder / HELDOUT_FILE)
