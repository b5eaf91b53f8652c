"""Read the files of a published dataset's local copy: Parquet, JSON lines or JSON.

Runs in the driver and in `ballast data`. Makes no prompts and downloads nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads

SUFFIXES = (".parquet", ".jsonl", ".json")


def source_files(source: str | Path) -> list[Path]:
    """List the files of one kind below `source`, Parquet before JSON, in the order of their names.

    Raises:
        ValueError: `source` does not exist, or holds no such file.
    """
    place = Path(source).expanduser()
    if not place.exists():
        raise ValueError(
            f"data.build.source={place} does not exist: put a local copy of the dataset there, or "
            "name your folder with data.build.source=FOLDER (or $BALLAST_DATA, which holds all)"
        )
    found = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    for suffix in SUFFIXES:
        if files := [path for path in found if path.suffix == suffix]:
            return files
    raise ValueError(f"{place} holds no {', '.join(SUFFIXES)} file; it is not a dataset's copy")


def digest_of(source: str | Path) -> str:
    """Return a SHA-256 of the files below `source`."""
    total = hashlib.sha256()
    for path in source_files(source):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def read_rows(
    source: str | Path,
    columns: Sequence[str],
    *,
    split: str | None = None,
    optional: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """Yield the named columns of every row, in the order of the files.

    Args:
        source: a file, or a folder that holds Parquet, JSON-lines or JSON files at any depth.
        columns: that every row has; a dot leads into a record.
        split: files or folders below `source` whose name begins so; None takes all.
        optional: columns of the top level that rows may have.

    Raises:
        ValueError: no such file, or a row without one of `columns`.
    """
    for path in _of_split(source, split):
        for row in _rows(path, (*columns, *optional)):
            yield {
                **{name: row.get(name) for name in optional},
                **{name: _field(row, name, path) for name in columns},
            }


def _of_split(source: str | Path, split: str | None) -> list[Path]:
    files, root = source_files(source), Path(source).expanduser()
    if split is None or root.is_file():
        return files
    found = [f for f in files if any(p.startswith(split) for p in f.relative_to(root).parts)]
    if not found:
        raise ValueError(
            f"{root} holds no file or folder whose name begins with {split!r}; set "
            "data.build.split and data.build.heldout_split"
        )
    return found


def _rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet":
        data = pads.dataset(path, format="parquet")
        wanted = {column.split(".")[0] for column in columns}
        present = [name for name in data.schema.names if name in wanted]
        for batch in data.to_batches(columns=present):
            yield from batch.to_pylist()
        return
    text = path.read_text()
    if text.lstrip().startswith("["):
        yield from json.loads(text)
        return
    if path.suffix == ".json":  # MATH: a file for each problem
        try:
            yield json.loads(text)
        except ValueError:  # lines, under this name
            pass
        else:
            return
    yield from (json.loads(line) for line in text.splitlines() if line.strip())


def _field(row: dict[str, Any], column: str, path: Path) -> Any:
    value: Any = row
    for name in column.split("."):
        if not isinstance(value, dict) or name not in value:
            raise ValueError(
                f"{path} has no column {column!r}; a row has {', '.join(row)}: set "
                "data.build.prompt_column and data.build.ground_truth_column"
            )
        value = value[name]
    return value
